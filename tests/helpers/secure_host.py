# SPDX-License-Identifier: MIT
"""Pair hosts with secure donors for tests: the real commands on both sides, each with directories of its own.

with running_donor(tmp_path / "donor", secure="") as donor:
    host = Host(tmp_path / "host")
    host.pair(donor)
    host.cli("donor", "list", "--json")
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostbox import paths
from helpers import forked
from helpers.donor import ROOT, RunningDonor


@dataclass(frozen=True)
class Host:
    """Is a host whose state, sockets and configuration lie below ``root``; its commands have ``more`` environment."""

    root: Path
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of its commands."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GHOSTBOX_")}
        own = {f"GHOSTBOX_{kind}_DIR": str(self.root / kind.lower()) for kind in ("STATE", "RUNTIME", "CACHE")}
        own |= {"GHOSTBOX_NATIVE_DIR": str(paths.find().native), "GHOSTBOX_SYSTEM_CONFIG": str(self.root / "none")}
        own |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(self.root / "none"), "NO_COLOR": "1"}
        return {**clean, **own, **self.more}

    def cli(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        """Run a command; return exit code, stdout, and stderr on one line."""
        done = run(self.env, *words, stdin=stdin)
        return done.returncode, done.stdout, " ".join(done.stderr.split())

    def json(self, *words: str) -> Any:
        """Return what a command that succeeds prints as JSON."""
        code, out, err = self.cli(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def pair(self, donor: RunningDonor) -> None:
        """Pair it with a donor."""
        code, _, err = self.cli("donor", "add", "-", stdin=create_token(donor))
        assert code == 0, err

    def pairings(self) -> list[dict[str, Any]]:
        """Return what it keeps of its donors, with the credentials."""
        return list(json.loads((self.root / "state" / "pairings.json").read_text())["pairings"])


def create_token(donor: RunningDonor, *words: str) -> str:
    """Have a donor make a pairing token, and return it."""
    return str(json.loads(owner(donor, "token", "create", *words, "--json"))["token"])


def owner(donor: RunningDonor, *words: str) -> str:
    """Run a command of a donor's owner, which must succeed; return its output."""
    done = run({**donor.env, "GHOSTBOX_MEMSERVER_NAME": str(donor.ready["name"])}, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(env: dict[str, str], *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return forked.run_with(env, *words, stdin=stdin)
