# SPDX-License-Identifier: MIT
"""A deployed memserver is stopped on its machine, or it is said that it does not end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ghostbox.errors import DeadlineExceeded
from ghostbox.memserver import deployed
from ghostbox.paths import Paths

STUBBORN = """
import signal, sys
from pathlib import Path
from ghostbox.memserver import lock
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with lock.name_lock("attic", Path(sys.argv[1]), Path(sys.argv[2])) as held:
    held.write("127.0.0.1:1")
    print("ready", flush=True)
    while True:
        signal.pause()
"""


def test_a_control_plane_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(tmp_path / "s", tmp_path / "r/ghostbox", tmp_path / "c", tmp_path / "config.yaml", tmp_path / "n")
    monkeypatch.setattr(deployed, "_STOP_S", 1.0)
    words = [sys.executable, "-c", STUBBORN, str(paths.memserver_state("attic")), str(tmp_path / "former")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            expected = rf"memserver 'attic' \(pid {process.pid}\) does not end within 1 s"
            with pytest.raises(DeadlineExceeded, match=expected):
                deployed._end("attic", paths, signal.SIGTERM)
            assert process.poll() is None
            deployed._end("attic", paths, signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL
        finally:
            process.kill()
