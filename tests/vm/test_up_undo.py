# SPDX-License-Identifier: MIT
"""``up`` that is interrupted, killed or fails at any stage leaves nothing behind.

The command is the real one; only its printer of stages is wrapped, so that the signal comes exactly at the beginning
or at the end of a stage, and never by chance.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.donor import RunningDonor, running_donor
from helpers.lab import Host, lab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

VM = "gbt-undo"
STAGES = ("image", "donors", "leases", "pager", "domain")
WRAPPED = """
import contextlib, os, signal, sys
from ghostbox.cli import main, output

plain = output.Stages.stage

@contextlib.contextmanager
def stage(self, name):
    hit = lambda moment: (name, moment) == (sys.argv[1], sys.argv[2])
    with plain(self, name) as inner:
        if hit("begin"):
            os.kill(os.getpid(), int(sys.argv[3]))
        yield inner
        if hit("end"):
            os.kill(os.getpid(), int(sys.argv[3]))

output.Stages.stage = stage
sys.exit(main.run(sys.argv[4:]))
"""
WITHOUT_DISK = """
import contextlib, os, sys
from ghostbox.cli import main, output

plain = output.Stages.stage

@contextlib.contextmanager
def stage(self, name):
    with plain(self, name) as inner:
        if name == "domain":
            os.unlink(sys.argv[1])
        yield inner

output.Stages.stage = stage
sys.exit(main.run(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningDonor]]:
    one, two = (tmp_path_factory.mktemp("donor") for _ in range(2))
    with running_donor(one, size="128M", name="one") as first, running_donor(two, size="128M", name="two") as second:
        yield [first, second]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with lab() as made:
        yield made


def up_words(donors: list[RunningDonor]) -> list[str]:
    sizes = ["--memory", "256M", "--remote-memory", "128M", "--cache", "16M", "--no-wait"]
    return ["up", VM, *sizes, *(word for donor in donors for word in ("--donor", donor.address))]


def up_signalled(
    host: Host, donors: list[RunningDonor], stage: str, moment: str, number: int
) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", WRAPPED, stage, moment, str(int(number)), *up_words(donors)]
    return subprocess.run(argv, env=dict(host.env), capture_output=True, text=True, timeout=100, check=False)


# At the end of "domain" the VM runs: see the next test.
MOMENTS = [(stage, moment) for stage in STAGES for moment in ("begin", "end")][:-1]


@pytest.mark.parametrize(("stage", "moment"), MOMENTS)
def test_ctrl_c_undoes_everything(host: Host, donors: list[RunningDonor], stage: str, moment: str) -> None:
    before = host.belongings(donors)
    done = up_signalled(host, donors, stage, moment, signal.SIGINT)
    assert host.belongings(donors) == before
    assert done.returncode == 130, done.stderr
    assert f"error: interrupted: VM '{VM}' was not started, what was made for it is undone" in done.stderr


def test_ctrl_c_once_the_vm_runs_keeps_it(host: Host, donors: list[RunningDonor]) -> None:
    before = host.belongings(donors)
    done = up_signalled(host, donors, "domain", "end", signal.SIGINT)
    assert done.returncode == 130
    assert f"VM '{VM}' keeps running" in done.stderr
    assert '"state": "running"' in host.cli("status", VM, "--json", check=True).stdout
    host.cli("delete", VM, "-y", "--force", check=True)
    assert host.belongings(donors) == before


def test_sigterm_undoes_everything_too(host: Host, donors: list[RunningDonor]) -> None:
    before = host.belongings(donors)
    done = up_signalled(host, donors, "pager", "end", signal.SIGTERM)
    assert host.belongings(donors) == before
    assert done.returncode == 130, done.stderr


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_next_command_undoes_an_up_that_was_killed(host: Host, donors: list[RunningDonor], stage: str) -> None:
    before = host.belongings(donors)
    done = up_signalled(host, donors, stage, "end", signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    assert host.belongings(donors) != before
    assert VM not in host.cli("list", check=True).stdout
    assert host.belongings(donors) == before


def test_donor_that_is_away_while_its_lease_is_undone_is_asked_again(host: Host, tmp_path: Path) -> None:
    """No command waits for the donor; the lease is noted and released in the background."""
    with running_donor(tmp_path, size="128M") as donor:
        before = host.belongings([donor])
        killed = up_signalled(host, [donor], "leases", "end", signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
        donor.kill_control_plane()
        away = host.cli("list", check=True)
        assert re.search(r"lease \S+ could not be released", " ".join(away.stderr.split()))
        assert VM not in away.stdout
        assert f"donor {donor.address} may still hold 128 MiB of VM '{VM}'" in host.cli("donor", "list").stderr
        donor.restart(control_port=donor.address.rpartition(":")[2])
        host.cli("settle-leases", check=True)
        assert host.belongings([donor]) == before


def test_pager_that_does_not_start_is_explained_and_undone(
    host: Host, donors: list[RunningDonor], tmp_path: Path
) -> None:
    native = tmp_path / "native"
    shutil.copytree(host.paths.native, native, symlinks=False)
    broken = native / "ghostbox-pager"
    broken.write_text("#!/bin/sh\necho 'cannot open /dev/userfaultfd: Permission denied' >&2\nexit 1\n")
    before = host.belongings(donors)
    other = replace(host, env={**host.env, "GHOSTBOX_NATIVE_DIR": str(native)})
    done = other.cli(*up_words(donors))
    assert done.returncode == 1
    assert (
        "error: the pager does not start (status 1)\nwhy: cannot open /dev/userfaultfd: Permission denied"
        in done.stderr
    )
    assert "fix: ghostbox doctor" in done.stderr
    assert host.belongings(donors) == before


def test_qemu_without_the_shim_is_never_started(host: Host, donors: list[RunningDonor], tmp_path: Path) -> None:
    """The shim cannot be loaded: ld.so only warns and goes on, so that the check of /proc/PID/maps must notice it."""
    native = tmp_path / "native"
    shutil.copytree(host.paths.native, native, symlinks=False)
    (native / "libghostbox-shim.so").write_text("not a library")
    before = host.belongings(donors)
    other = replace(host, env={**host.env, "GHOSTBOX_NATIVE_DIR": str(native)})
    done = other.cli(*up_words(donors))
    assert done.returncode == 1
    assert re.search(r"error: QEMU \(pid \d+\) runs without libghostbox-shim-\w+\.so", done.stderr)
    assert "why: the dynamic loader did not load it\nQEMU's log: " in done.stderr
    assert re.search(r"from LD_PRELOAD cannot be preloaded \(file too short\)", done.stderr)
    assert host.belongings(donors) == before


def test_domain_that_libvirt_refuses_is_explained_and_undone(host: Host, donors: list[RunningDonor]) -> None:
    """QEMU's greatest number of CPUs depends on its version; every version refuses a missing disk."""
    before = host.belongings(donors)
    argv: list[str | Path] = [sys.executable, "-c", WITHOUT_DISK, host.paths.vm(VM).disk, *up_words(donors)]
    done = subprocess.run(argv, env=dict(host.env), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "error: cannot start the domain\nwhy: " in done.stderr
    assert str(host.paths.vm(VM).disk) in done.stderr
    assert host.belongings(donors) == before


DEFINED = f"""<domain type="qemu"><name>ghostbox-{VM}</name><memory unit="MiB">64</memory>
<os><type arch="x86_64">hvm</type></os></domain>"""


def test_domain_of_the_same_name_that_is_defined_is_named_and_left_alone(
    host: Host, donors: list[RunningDonor], tmp_path: Path
) -> None:
    """The domain may be off or running: the advice destroys neither."""
    before = host.belongings(donors)
    file = tmp_path / "domain.xml"
    file.write_text(DEFINED)
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    subprocess.run([*virsh, "define", file], check=True, capture_output=True)
    try:
        done = host.cli(*up_words(donors))
        said = " ".join(done.stderr.split())
        assert done.returncode == 1
        assert f"error: libvirt has a domain named ghostbox-{VM} already, and it is not this VM's" in said
        assert "why: it is shut off, but defined there fix: choose another name for the VM, or give the other" in said
        assert f"virsh -c qemu:///system domrename ghostbox-{VM} NEW-NAME" in said
        assert "destroy" not in said
        listed = subprocess.run([*virsh, "list", "--all", "--name"], check=True, capture_output=True, text=True)
        assert f"ghostbox-{VM}" in listed.stdout.split()
        assert host.belongings(donors) == before
    finally:
        subprocess.run([*virsh, "undefine", f"ghostbox-{VM}"], check=True, capture_output=True)
