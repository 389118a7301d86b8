# SPDX-License-Identifier: MIT
"""An ordinary user's VM on the session libvirt is used from other logins, and after the login has ended.

No test here waits for the guest: its QEMU has just begun to boot. The user is nobody, whose logins are directories.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ghostbox import paths
from ghostbox.donors.client import DonorClient
from ghostbox.session import events, supervisor
from ghostbox.session.record import Book
from ghostbox.system import hypervisor, processes
from helpers.donor import RunningDonor, running_donor
from helpers.guest import share_images

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: not root, so no other user can be put to use"),
]

VM = "gbt-login"
NOBODY = 65534
DEVICE = Path("/dev/userfaultfd")
SIZES = ("--memory", "256M", "--remote-memory", "128M", "--cache", "16M")


@dataclass
class User:
    """Be the user nobody, with a home directory of their own.

    ``login`` is the runtime directory that a login gives them.
    """

    root: Path
    python: Path
    donor: RunningDonor

    @property
    def login(self) -> Path:
        return self.root / "login"

    @property
    def files(self) -> paths.VmPaths:
        book = Book(paths.VmPaths(self.root / "home/.local/state/ghostbox/vms" / VM, self.login))
        book.load()
        return book.files

    def begin_login(self) -> None:
        self.login.mkdir(mode=0o700)
        os.chown(self.login, NOBODY, NOBODY)

    def end_login(self) -> None:
        """End the login as logind does: the directory is removed, and sockets in it cannot be reached any more."""
        shutil.rmtree(self.login)

    def cli(self, *words: str, logged_in: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, in the login or without one, as ``su`` and cron do."""
        command = self.start(*words, logged_in=logged_in)
        try:
            said, problems = command.communicate(timeout=200)
        finally:
            command.kill()
        return subprocess.CompletedProcess(words, command.returncode, said, problems)

    def start(self, *words: str, logged_in: bool = True) -> subprocess.Popen[str]:
        """Start a command."""
        more = {"XDG_RUNTIME_DIR": str(self.login)} if logged_in else {}
        env = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.root / "home"), "LANG": "C.UTF-8", "NO_COLOR": "1",
            "GHOSTBOX_CACHE_DIR": str(self.root / "cache"), "GHOSTBOX_SYSTEM_CONFIG": str(self.root / "none.yaml"),
            "PYTHONDONTWRITEBYTECODE": "1", **more,
        }  # fmt: skip
        return subprocess.Popen(
            [self.python, "-m", "ghostbox", *words],
            env=env, cwd=self.root / "home", text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[DEVICE.stat().st_gid],
        )  # fmt: skip

    def recorded(self) -> str:
        record = Book(self.files).load()
        assert record is not None
        return str(record.state)

    def listed(self, *, logged_in: bool) -> dict[str, Any]:
        done = self.cli("list", "--json", logged_in=logged_in)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout)[0])

    def leases(self) -> list[str]:
        with DonorClient(self.donor.address) as client:
            return [lease.name for lease in client.leases()]

    def qemu_pid(self) -> int:
        record = Book(self.files).load()
        assert record is not None
        found = hypervisor.find_qemu(record.uuid)
        return 0 if found is None else found.pid

    def said(self) -> list[str]:
        return [each.event for each in events.read(self.files)]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    if DEVICE.stat().st_mode & 0o060 != 0o060:
        pytest.skip(f"cannot run here: no group may open {DEVICE}")
    root = Path(tempfile.mkdtemp(prefix="gbt-", dir="/tmp"))
    root.chmod(0o711)
    for name in ("home", "cache", "python"):
        (root / name).mkdir()
    os.chown(root / "home", NOBODY, NOBODY)
    (root / "home" / "ghostbox.yaml").write_text("libvirt: {uri: 'qemu:///session'}\n")
    share_images(root / "cache")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        # The tests may run from a directory that is closed to other users.
        subprocess.run(["mount", "--bind", sys.prefix, root / "python"], check=True)
        stack.callback(lambda: subprocess.run(["umount", "-l", root / "python"], check=False))
        donor = stack.enter_context(running_donor(tmp_path_factory.mktemp("donor"), size="256M", name="gbt-login"))
        made = User(root, root / "python/bin/python", donor)
        stack.callback(end_all, made)
        made.begin_login()
        done = made.cli("up", VM, *SIZES, "--donor", donor.address, "--no-wait")
        assert done.returncode == 0, done.stderr
        yield made


def end_all(user: User) -> None:
    """End what a failed test left behind: the user's programs name one of the user's directories."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if str(user.root).encode() in words and entry.stat().st_uid == NOBODY:
                processes.terminate(pid, timeout_s=2.0)


def end_libvirt(user: User) -> None:
    """End the session's libvirt of both logins: no libvirt manages the VM any more."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.stat().st_uid != NOBODY or b"libvirtd" not in (entry / "cmdline").read_bytes().split(b"\0")[0]:
                continue
            if f"HOME={user.root}/home".encode() in (entry / "environ").read_bytes().split(b"\0"):
                processes.terminate(int(entry.name))


def test_command_from_another_login_finds_the_vm_and_releases_nothing(user: User) -> None:
    before = user.leases(), user.qemu_pid()
    found = user.listed(logged_in=False)
    assert (found["state"], found["health"]) == ("running", "ok")
    status = user.cli("status", VM, "--json", logged_in=False)
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["pager"]["regions"][0]["pid"] == user.qemu_pid()
    assert (user.leases(), user.qemu_pid()) == before
    assert len(before[0]) == 1


def test_down_that_gives_up_or_is_interrupted_leaves_a_vm_that_is_said_to_run(user: User) -> None:
    """The guest has just begun to boot, and does not react to its power button."""
    late = user.cli("down", VM, "--timeout", "1s")
    assert late.returncode == 124, late.stderr
    assert f"VM '{VM}' did not shut down within 1.0 s; it still runs" in late.stderr
    assert user.recorded() == user.listed(logged_in=True)["state"] == "running"
    command = user.start("down", VM)
    processes.wait_until(lambda: user.recorded() == "stopping", timeout_s=60, what="the guest to be asked")
    assert user.listed(logged_in=True)["state"] == "stopping"
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130
    assert f"interrupted: VM '{VM}' was asked to shut down, and may do so yet" in said
    assert user.recorded() == user.listed(logged_in=True)["state"] == "running"


def test_runtime_directory_that_a_cleaner_removed_is_made_anew_and_status_says_so(user: User) -> None:
    with supervised_no_more(user):
        shutil.rmtree(user.files.runtime)
        watched = user.cli("status", VM, "--no-recover")
        assert watched.returncode == 6
        assert "its pager" in watched.stderr and "are gone: pager-control.sock, pager.sock" in watched.stderr
        assert "frozen" not in watched.stderr and "down" not in watched.stderr
        done = user.cli("status", VM)
        assert done.returncode == 0, done.stderr
        assert "were gone: its pager has made them anew" in " ".join(done.stderr.split())
    assert "runtime-restored" in user.said()
    user.cli("list")  # the command starts a supervisor
    shutil.rmtree(user.files.runtime)
    processes.wait_until(
        lambda: user.said().count("runtime-restored") == 2, timeout_s=60, what="the supervisor to have noticed"
    )
    assert "pager were gone" not in user.cli("recover", VM).stdout
    assert len(user.leases()) == 1


@contextlib.contextmanager
def supervised_no_more(user: User) -> Iterator[None]:
    """Keep the supervisor from doing what the test expects of a command."""
    held: list[int] = []

    def alone() -> bool:
        supervisor.stop(user.files)  # each command that found no supervisor has started one, and they start slowly
        held.extend(found for found in [supervisor.lock(user.files)] if found is not None)
        return bool(held)

    processes.wait_until(alone, timeout_s=60, what="the end of the supervisors", interval_s=0.2)
    try:
        yield
    finally:
        os.close(held[0])


def test_end_of_the_login_releases_nothing_whichever_command_asks(user: User) -> None:
    pid, leases = user.qemu_pid(), user.leases()
    user.cli("list")  # the command starts a supervisor
    end_libvirt(user)
    user.end_login()
    processes.wait_until(lambda: "runtime-failed" in user.said(), timeout_s=60, what="the supervisor to have noticed")
    for logged_in in (False, True):
        found = user.listed(logged_in=logged_in)
        assert found["state"] == "unmanaged"
        assert f"its QEMU (pid {pid}) runs: nothing of it is released" in found["problem"]["text"]
    for command, code in (("down", 5), ("delete", 5), ("status", 6)):
        done = user.cli(command, VM, *(["-y"] if command == "delete" else []), logged_in=False)
        assert done.returncode == code, done.stderr
    up = user.cli("up", VM, *SIZES, "--donor", user.donor.address, "--no-wait", logged_in=False)
    assert "runs already" in up.stdout, up.stderr
    assert (user.leases(), user.qemu_pid()) == (leases, pid)


def test_next_login_has_the_vm_again(user: User) -> None:
    pid, leases = user.qemu_pid(), user.leases()
    user.begin_login()
    done = user.cli("status", VM)
    assert f"its QEMU (pid {pid}) runs" in " ".join(done.stderr.split())
    processes.wait_until(
        lambda: json.loads(user.cli("status", VM, "--json").stdout)["pager"] is not None,
        timeout_s=60, what="the pager's sockets",
    )  # fmt: skip
    assert (user.leases(), user.qemu_pid()) == (leases, pid)


def test_forced_down_ends_a_qemu_that_no_libvirt_knows_and_then_gives_the_memory_back(user: User) -> None:
    pid = user.qemu_pid()
    done = user.cli("down", VM, "--force", logged_in=False)
    assert done.returncode == 0, done.stderr
    assert not processes.pid_alive(pid)
    assert user.leases() == []
    assert user.listed(logged_in=False)["state"] == "stopped"
    assert user.cli("delete", VM, "-y").returncode == 0
