# SPDX-License-Identifier: MIT
"""Run donors for tests: a real ``ghostbox memserver`` on loopback, with directories of its own.

    with running_donor(tmp_path, size="64M") as donor:
        with DonorClient(donor.address) as client: ...

However the test ends, its processes end with it: the memserver's, and the C program's, which outlives the memserver by
design.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostbox import paths
from ghostbox.system import processes

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 30.0


@dataclass
class RunningDonor:
    """Is a donor that a test started. ``ready`` is its JSON line, ``process`` and ``argv`` are the control plane's."""

    argv: list[str]
    env: dict[str, str]
    process: subprocess.Popen[str]
    stderr_path: Path
    control_socket: Path
    state_dir: Path
    ready: dict[str, Any]
    data_plane_pids: set[int] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Return ``host:port`` of the control API."""
        return str(self.ready["control_address"])

    @property
    def nbd_address(self) -> str:
        """Return ``host:port`` of the NBD server."""
        return str(self.ready["nbd_address"])

    @property
    def nbd_port(self) -> int:
        """Return the port of the NBD server."""
        return int(self.nbd_address.rpartition(":")[2])

    @property
    def data_plane_pid(self) -> int:
        """Return the present process id of ``ghostbox-memserver``."""
        pid = int(processes.control_request(self.control_socket, "status")["pid"])
        self.data_plane_pids.add(pid)
        return pid

    def uri(self, export: str) -> str:
        """Return the NBD URI of an export."""
        return f"nbd://{self.nbd_address}/{export}"

    def stderr(self) -> str:
        """Return all that the control plane wrote on stderr, also before a restart, on one line."""
        return " ".join(self.stderr_path.read_text().split())

    def wait_for_log(self, text: str, *, times: int = 1, timeout_s: float = 20.0) -> None:
        """Wait until ``text`` was logged ``times``."""
        processes.wait_until(
            lambda: self.stderr().count(text) >= times, timeout_s=timeout_s, what=f"'{text}' in the log"
        )

    def kill_control_plane(self) -> None:
        """Kill only the Python process (SIGKILL)."""
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def restart(self, **changed: str) -> None:
        """Start the control plane again with the same options, except those in ``changed``."""
        self.process, self.ready = _start(_with_options(self.argv, changed), self.env, self.stderr_path)
        self.data_plane_pids.add(int(self.ready["data_plane_pid"]))

    def interrupt(self, sig: int = signal.SIGTERM) -> None:
        """Send a signal to the control plane."""
        self.process.send_signal(sig)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the control plane's end and return its exit code."""
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_donor(
    tmp_path: Path,
    *,
    size: str = "64M",
    name: str = "donor",
    reserve: str = "0",
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    **options: str | None,
) -> Iterator[RunningDonor]:
    """Run ``ghostbox memserver`` until the end of the block.

    Args:
        tmp_path: where its state and log go; several donors may share it if their names differ.
        size: the memory that it lends.
        name: its name; the donor is on a machine of that name, unless ``machine`` is another name, or None: then the
            kernel identifies the machine.
        reserve: the memory that it leaves free.
        env: further environment.
        prefix: words before the command, such as those that enter a network namespace.
        options: any other option, ``drain_timeout="1s"`` for ``--drain-timeout 1s``, ``insecure=""`` for a flag.
    """
    with contextlib.ExitStack() as stack:
        # The path of a Unix socket must be short, and pytest's directories are long.
        runtime = Path(tempfile.mkdtemp(prefix="gb-"))
        stack.callback(shutil.rmtree, runtime, ignore_errors=True)
        full_env = donor_environment(tmp_path, runtime, env)
        own = {"size": size, "name": name, "reserve": reserve, "port": "0", "control-port": "0"}
        own |= {key: value for key, value in {"machine": name, **options}.items() if value is not None}
        argv = [*prefix, *memserver_argv(own)]
        stderr_path = tmp_path / f"{name}.stderr"
        sockets = runtime / "memservers" / name / "control.sock"
        stack.callback(_end_data_plane, sockets)
        process, ready = _start(argv, full_env, stderr_path)
        state = Path(full_env["GHOSTBOX_STATE_DIR"]) / "memservers" / name
        donor = RunningDonor(argv, full_env, process, stderr_path, sockets, state, ready)
        donor.data_plane_pids.add(int(ready["data_plane_pid"]))
        stack.callback(_end, donor)
        yield donor


def donor_environment(tmp_path: Path, runtime: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a memserver that shares nothing with this machine's own installation."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GHOSTBOX_")}
    ours = {
        "PYTHONPATH": str(ROOT),
        "GHOSTBOX_NATIVE_DIR": str(paths.find().native),
        "GHOSTBOX_STATE_DIR": str(tmp_path / "state"),
        "GHOSTBOX_RUNTIME_DIR": str(runtime),
        "GHOSTBOX_CACHE_DIR": str(tmp_path / "cache"),
        "GHOSTBOX_SYSTEM_CONFIG": str(tmp_path / "no-config.yaml"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg-config"),
    }
    return {**clean, **ours, **(more or {})}


def memserver_argv(options: Mapping[str, str]) -> list[str]:
    """Return the command for ``ghostbox memserver`` with ``options`` (an empty value is a flag)."""
    argv = [sys.executable, "-m", "ghostbox.cli.main", "memserver", "--json"]
    for key, value in options.items():
        argv += [f"--{key.replace('_', '-')}={value}" if value else f"--{key.replace('_', '-')}"]
    return argv


def _with_options(argv: list[str], changed: Mapping[str, str]) -> list[str]:
    flags = [f"--{key.replace('_', '-')}=" for key in changed]
    kept = [word for word in argv if not any(word.startswith(flag) for flag in flags)]
    return kept + [flag + value for flag, value in zip(flags, changed.values(), strict=True)]


def _start(argv: list[str], env: dict[str, str], stderr_path: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    with stderr_path.open("a") as stderr:
        process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not select.select([process.stdout], [], [], 0.1)[0]:
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"the donor is not ready after {READY_TIMEOUT_S:.0f} s: {stderr_path.read_text()}")
    line = process.stdout.readline()
    if not line:
        status = process.wait(10)
        raise RuntimeError(f"the donor ended with status {status}: {stderr_path.read_text()}")
    return process, json.loads(line)


def _end(donor: RunningDonor) -> None:
    """End the donor whatever it still holds, and all data planes that it had."""
    if donor.process.poll() is None:
        donor.process.kill()
    donor.process.wait(10)
    assert donor.process.stdout is not None
    donor.process.stdout.close()
    for pid in donor.data_plane_pids:
        if _is_memserver(pid):
            processes.terminate(pid)


def _end_data_plane(control_socket: Path) -> None:
    """End the data plane that a killed control plane left."""
    with contextlib.suppress(processes.ControlError):
        processes.control_request(control_socket, "shutdown")


def _is_memserver(pid: int) -> bool:
    try:
        return "ghostbox-memserver" in Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False
