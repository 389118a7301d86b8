# SPDX-License-Identifier: MIT
"""The demo's two donors: memservers on this machine's loopback, each a process that outlives the command."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostbox import processes
from ghostbox.errors import ProgramError
from ghostbox.paths import Paths, make_directory
from ghostbox.units import format_bytes

_READY_TIMEOUT_S = 30.0
_SHUT_DOWN_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Lender:
    """A memserver that the demo started."""

    name: str
    pid: int
    address: str


def start(names: tuple[str, ...], size_bytes: int, paths: Paths) -> list[Lender]:
    """Return a memserver for each name, started unless it runs from an earlier demo.

    Raises:
        ProgramError: one does not start; those that this call started are ended.
    """
    known = {lender.name: lender for lender in running(paths)}
    lenders: list[Lender] = []
    try:
        for name in names:
            lenders.append(known.get(name) or _start_one(name, size_bytes, paths))
            _write_record({**known, **{lender.name: lender for lender in lenders}}.values(), paths)
    except BaseException:
        stop([lender for lender in lenders if lender.name not in known], paths)
        raise
    return lenders


def running(paths: Paths) -> list[Lender]:
    """Return the demo's memservers that are alive."""
    found: dict[str, Lender] = {}
    for file in (_record_file(paths), paths.runtime / "demo.json"):  # the second is of versions before 2026-11-29
        try:
            entries = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        for lender in (Lender(**entry) for entry in entries):
            if _is_ours(lender):
                found.setdefault(lender.name, lender)
    return list(found.values())


def stop(lenders: list[Lender], paths: Paths) -> None:
    """End memservers and remove what they keep. Their leases must be released before."""
    for lender in lenders:
        if _is_ours(lender):
            processes.terminate(lender.pid, timeout_s=_SHUT_DOWN_TIMEOUT_S)
        shutil.rmtree(paths.memserver_state(lender.name), ignore_errors=True)
        shutil.rmtree(paths.memserver_runtime(lender.name), ignore_errors=True)
    _write_record([lender for lender in running(paths) if lender not in lenders], paths)


def _start_one(name: str, size_bytes: int, paths: Paths) -> Lender:
    log = paths.memserver_state(name) / "control.log"
    make_directory(log.parent, 0o700)
    log.unlink(missing_ok=True)
    options = {"name": name, "size": str(size_bytes), "reserve": "0", "port": "0", "control-port": "0"}
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    child = processes.start_detached(
        [sys.executable, "-P", "-m", "ghostbox", "memserver", *words, "--json"], log_path=log
    )
    try:
        processes.wait_until(
            lambda: child.poll() is not None or _ready_line(log) is not None,
            timeout_s=_READY_TIMEOUT_S,
            what=f"memserver {name}",
        )
        ready = _ready_line(log)
        if ready is None:
            raise ProgramError(
                f"a memserver of {format_bytes(size_bytes)} does not start",
                why=_failure(log),
                hint="ghostbox doctor --role donor",
            )
    except BaseException:
        processes.terminate(child.pid)
        raise
    return Lender(name, child.pid, str(ready["control_address"]))


def _ready_line(log: Path) -> dict[str, object] | None:
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            found = json.loads(line)
            if "control_address" in found:
                return dict(found)
    return None


def _failure(log: Path) -> str | None:
    """Return what a memserver that ended said of the reason."""
    lines = log.read_text(errors="replace").strip().splitlines()
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            error = json.loads(line)["error"]
            return ": ".join(filter(None, (error["message"], error["why"])))
    return "\n".join(lines[-5:]) or None


def _is_ours(lender: Lender) -> bool:
    """A process id may have been given to another process since."""
    try:
        words = Path(f"/proc/{lender.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"memserver" in words and lender.name.encode() in words and processes.pid_alive(lender.pid)


def _record_file(paths: Paths) -> Path:
    return paths.state / "demo.json"


def _write_record(lenders: Collection[Lender], paths: Paths) -> None:
    file = _record_file(paths)
    if not lenders:
        file.unlink(missing_ok=True)
        return
    make_directory(file.parent)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps([asdict(lender) for lender in lenders]))
    draft.replace(file)
