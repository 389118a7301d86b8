# SPDX-License-Identifier: MIT
"""libvirt runs and refuses the user: its reason is quoted, and no daemon is started.

The libvirt is a real one that runs as the user nobody and demands a proof that nobody cannot give. In a mount namespace
its socket is in the place of the system's.
"""

from __future__ import annotations

import ctypes
import grp
import importlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from ghostbox import config, paths
from ghostbox.doctor import CHECKS, Check, Machine, Result
from ghostbox.errors import GhostboxError, LibvirtDenied
from ghostbox.system import hypervisor, processes
from ghostbox.system.hypervisor import accounts
from helpers.other_user import NOBODY, as_user

T = TypeVar("T")
CLONE_NEWNS = 0x00020000  # linux/sched.h
JOIN = "sudo usermod -aG libvirt $USER, then log in again; or run this as root"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user"),
    pytest.mark.skipif(processes.which("libvirtd") is None, reason="libvirtd is not installed"),
]


def as_nobody(look: Callable[[], T], run_libvirt: Path) -> T:
    """Return what the user nobody sees in a mount namespace where ``run_libvirt`` is /run/libvirt."""

    def mount() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
        Path("/run/libvirt").symlink_to(run_libvirt)

    return as_user(look, first=mount)


def doctors_word(run_libvirt: Path) -> Check:
    machine = Machine(config.load(), paths.find())
    check = next(function for name, _, function in CHECKS if name == "libvirt")
    importlib.import_module("ghostbox.doctor.hypervisor")  # the check would import it, as nobody
    return as_nobody(lambda: check("libvirt", machine), run_libvirt)


def error_of_up() -> GhostboxError | None:
    """Connect as `ghostbox up` does, which may start a daemon; return the error."""
    try:
        hypervisor.connect("qemu:///system").close()
    except GhostboxError as err:
        return err
    return None


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory that the user nobody may pass."""
    with tempfile.TemporaryDirectory(prefix="gbt-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["polkit", "sasl"])
def libvirt_that_asks(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """Run a libvirt that admits users by polkit, or by SASL; yield the directory of its socket."""
    (place / "conf").write_text(f'auth_unix_rw = "{request.param}"\n')
    for name in ("home", "run"):
        (place / name).mkdir()
        os.chown(place / name, NOBODY, NOBODY)
    program = processes.which("libvirtd")
    assert program is not None
    daemon = subprocess.Popen(
        [program, "--config", place / "conf"],
        env={"PATH": processes.search_path(), "HOME": str(place / "home"), "XDG_RUNTIME_DIR": str(place / "run")},
        stderr=subprocess.DEVNULL, user=NOBODY, group=NOBODY, extra_groups=[],
    )  # fmt: skip
    try:
        socket = place / "run/libvirt/libvirt-sock"
        processes.wait_until(socket.is_socket, timeout_s=30, what="the libvirt of nobody")
        yield socket.parent
    finally:
        daemon.terminate()
        daemon.wait(30)


def test_doctor_quotes_the_libvirt_that_lets_nobody_in(libvirt_that_asks: Path) -> None:
    found = doctors_word(libvirt_that_asks)
    assert (found.result, found.found) == (Result.FAIL, "libvirt at qemu:///system does not let this user connect")
    assert "authentication" in (found.why or "") or "system bus" in (found.why or "")
    assert found.fix == JOIN


def test_up_starts_no_daemon_where_one_lets_nobody_in(libvirt_that_asks: Path) -> None:
    seen = as_nobody(error_of_up, libvirt_that_asks)
    assert isinstance(seen, LibvirtDenied)
    assert seen.message == "libvirt at qemu:///system does not let this user connect"
    assert seen.hint == JOIN


def test_a_socket_that_the_user_may_not_open_is_libvirt_and_does_not_let_them_in(place: Path) -> None:
    (place / "libvirt-sock").touch(mode=0o600)
    found = doctors_word(place)
    assert (found.result, found.found) == (Result.FAIL, "libvirt at qemu:///system does not let this user connect")
    assert "libvirt-sock': Permission denied" in (found.why or "")
    assert found.fix == JOIN
    seen = as_nobody(error_of_up, place)
    assert isinstance(seen, LibvirtDenied)


def test_a_member_of_the_group_is_told_of_polkit() -> None:
    group = grp.getgrnam("libvirt").gr_gid
    hint = as_user(lambda: accounts.way_in("qemu:///system"), groups=[group])
    assert hint.startswith(
        "nobody is in the group libvirt: install polkitd, which lets members connect, or set auth_unix_rw"
    )
    assert 'auth_unix_rw = "none" and unix_sock_group = "libvirt" in /etc/libvirt/libvirtd.conf' in hint


def test_root_is_not_told_to_join_a_group() -> None:
    assert accounts.way_in("qemu:///system").startswith("see auth_unix_rw in /etc/libvirt/libvirtd.conf")


def test_a_session_libvirt_has_no_group() -> None:
    assert "XDG_RUNTIME_DIR" in accounts.way_in("qemu:///session")
