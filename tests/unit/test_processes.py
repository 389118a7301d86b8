# SPDX-License-Identifier: MIT
"""Starting programs: what they get of our environment."""

from __future__ import annotations

import pytest

from ghostbox import processes


def test_a_program_inherits_our_environment_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", "/ours")
    assert "GHOSTBOX_STATE_DIR=/ours" in processes.run(["/usr/bin/env"]).splitlines()
    assert {"GHOSTBOX_STATE_DIR=/ours", "A=b"} <= set(processes.run(["/usr/bin/env"], env={"A": "b"}).splitlines())
    assert processes.run(["/usr/bin/env"], env={"A": "b"}, inherit_env=False) == "A=b\n"
