# SPDX-License-Identifier: MIT
"""Starting programs: what they get of our environment."""

from __future__ import annotations

import pytest

from ghostbox import processes
from ghostbox.errors import ProgramError


def test_a_program_inherits_our_environment_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", "/ours")
    assert "GHOSTBOX_STATE_DIR=/ours" in processes.run(["/usr/bin/env"]).splitlines()
    assert {"GHOSTBOX_STATE_DIR=/ours", "A=b"} <= set(processes.run(["/usr/bin/env"], env={"A": "b"}).splitlines())
    assert processes.run(["/usr/bin/env"], env={"A": "b"}, inherit_env=False) == "A=b\n"


def test_programs_of_the_system_are_found_where_path_ends_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a user who is not root: libvirtd and mke2fs lie in /usr/sbin."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for program in ("libvirtd", "mke2fs"):
        assert processes.which(program) is not None
    assert "libvirt" in processes.run(["libvirtd", "--version"])
    assert processes.which("no-such-program") is None
    with pytest.raises(ProgramError, match="cannot run no-such-program: not found"):
        processes.run(["no-such-program"])
