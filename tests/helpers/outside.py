# SPDX-License-Identifier: MIT
"""What a host that is not paired with a secure donor learns from it, from wherever it looks.

    seen = outside.look([sys.executable], donor.address, donor.nbd_port, routes)
    assert seen == outside.expected(routes)

The looking itself is ``outside_probe.py``, which needs nothing but Python.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghostbox.memserver.access import OPEN, AllRights
from ghostbox.memserver.app import make_app
from ghostbox.memserver.audit import AuditLog
from ghostbox.memserver.identity import Identity
from helpers import outside_probe
from helpers.donor import RunningDonor
from helpers.machine import Machine

PROBE = Path(outside_probe.__file__).read_text(encoding="utf-8")
NOBODY: dict[str, Any] = {"control": False, "data": False}
"""What is seen where no connection to the donor is made."""
_NEEDS_TLS = "ERR_TLS_REQD this server needs TLS: begin with STARTTLS"
_OPTIONS = {
    "EXPORT_NAME": "closed",
    "ABORT": "ACK",
    "STARTTLS": "ACK, and no TLS without a key",
}


def routes(place: Path) -> list[str]:
    """Return method and path of each route of the application itself, and of some that there are not.

    ``place`` is a directory for a file that is never written.
    """
    nothing: Any = None
    app = make_app(Identity("x", "y", "z"), nothing, AuditLog(place / "unused"))
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/openapi.json", "headers": [], "query_string": b""}
    scope |= {"client": ("127.0.0.1", 1), "server": ("x", 1), "scheme": "http", "root_path": "", "http_version": "1.1"}
    asyncio.run(AllRights(app)(scope, receive, send))
    described = json.loads(b"".join(sent))["paths"]
    found = [f"{method.upper()} {path}" for path, methods in described.items() for method in methods]
    assert "DELETE /v1/leases/{name}" in found
    found += ["GET /openapi.json", "GET /admin", "POST /v1/version", "GET /v1/pairings", "GET /v1/leases/"]
    return [each.replace("{name}", "one").replace("{number}", "0" * 16) for each in found]


def expected(asked: Sequence[str]) -> dict[str, Any]:
    """Return what a stranger sees who reaches both ports: the version, and nothing else."""
    answers = dict.fromkeys(asked, "401 not-paired")
    answers |= {f"{method} {path}": "422 invalid" for method, path in OPEN}
    own = dict.fromkeys(("GET /v1/pairing-requests/self", "DELETE /v1/pairing-requests/self"), "404 request-unknown")
    answers |= {"GET /v1/version": "200 version", **own}
    return {
        "control": True,
        "data": True,
        "routes": answers,
        "otherwise": {"plain HTTP": "no answer", "TLS 1.2": "no answer"},
        "options": {name: _OPTIONS.get(name, _NEEDS_TLS) for name in outside_probe.OPTIONS},
    }


def look(python: Sequence[str], donor: RunningDonor, asked: Sequence[str]) -> dict[str, Any]:
    """Return what is seen by a Python that the words ``python`` start."""
    argv = [*python, "-", *_words(donor, asked)]
    done = subprocess.run(argv, input=PROBE, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def look_from_guest(machine: Machine, donor: RunningDonor, asked: Sequence[str]) -> dict[str, Any]:
    """Return what a program in the guest sees."""
    command = shlex.join(["python3", "-", *_words(donor, asked)])
    done = machine.host.cli("shell", machine.name, "--", command, stdin=PROBE, check=True)
    return dict(json.loads(done.stdout))


def _words(donor: RunningDonor, asked: Sequence[str]) -> list[str]:
    host, _, control = donor.address.rpartition(":")
    return [host, control, str(donor.nbd_port), json.dumps(list(asked))]
