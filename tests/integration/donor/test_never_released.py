# SPDX-License-Identifier: MIT
"""Memory is not released while a QEMU with the VM's UUID lives, whatever libvirt says; a real donor is asked.

A process with the UUID on its command line is in QEMU's place. libvirt's own test driver, which does not know the
domain, is the libvirt of another login.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox import session
from ghostbox.cli.output import Stages
from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.errors import DeadlineExceeded, HypervisorError, NotFound, NotRunning, Refused
from ghostbox.paths import Paths, make_directory
from ghostbox.session import liveness, logs, observe, runtime_dir
from ghostbox.session.record import Book, LeaseRecord, Made, Record, VmState, locked
from ghostbox.system import process_table, processes
from ghostbox.system.hypervisor import DomainState, find_qemu
from ghostbox.system.process_table import identify, machine_id
from ghostbox.units import MIB
from helpers import nbd
from helpers.donor import RunningDonor, running_donor
from helpers.pager import short_dir

VM = "gbt-never"
CliRun = subprocess.CompletedProcess[str]


@dataclass
class Vm:
    """Be a VM that runs by its record, and the process in QEMU's place."""

    book: Book
    paths: Paths
    donor: RunningDonor
    qemu: subprocess.Popen[bytes]

    def save(self, **changes: object) -> Record:
        record = self.book.load()
        assert record is not None
        return self.book.save(dataclasses.replace(record, **changes))  # type: ignore[arg-type]

    def leases(self) -> list[str]:
        with DonorClient(self.donor.address) as client:
            return [lease.name for lease in client.leases()]

    def seen(self) -> observe.Seen:
        """Return the state that a command finds that only looks, after the repairs that such a command makes."""
        return observe.heal_if_idle(Book(self.paths.vm(VM)))

    def end_qemu(self) -> None:
        self.qemu.kill()
        self.qemu.wait()


def environment(vm: Vm) -> dict[str, str]:
    """Return the variables by which a command finds the VM."""
    return {"GHOSTBOX_STATE_DIR": str(vm.paths.state), "GHOSTBOX_RUNTIME_DIR": str(vm.paths.runtime)}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor")) as running:
        yield running


@pytest.fixture
def vm(donor: RunningDonor) -> Iterator[Vm]:
    with short_dir() as root, DonorClient(donor.address) as client:
        own = Paths(root / "s", root / "r", root / "c", root / "e", root / "n")
        book = Book(own.vm(VM))
        make_directory(book.files.state)
        book.save(record_of(donor))
        client.create_lease("kept", 4 * MIB, Holder("here", VM))
        # It makes no process: the fork of a shell that is killed has the shell's words until it runs its program.
        argv = ["sh", "-c", "read line", "-uuid", book.record.uuid]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as qemu:
            try:
                # Popen returns shortly before the new program has a command line.
                processes.wait_until(lambda: find_qemu(argv[-1]) is not None, timeout_s=20, what="its command line")
                yield Vm(book, own, donor, qemu)
            finally:
                qemu.kill()
                with contextlib.suppress(NotFound):
                    client.release_lease("kept")


def record_of(donor: RunningDonor) -> Record:
    return Record(
        name=VM, state=VmState.RUNNING, uuid=str(uuid.uuid4()), mac="m", ssh_port=1,
        created_at="2026-01-01T00:00:00+00:00", domain=f"ghostbox-{VM}", libvirt_uri="test:///default", image="none",
        user="ghost", virt="tcg", cpus=1,
        memory_bytes=256 * MIB, remote_memory_bytes=128 * MIB, cache_bytes=16 * MIB, disk_bytes=20 << 30,
        new=False, made=frozenset({Made.DOMAIN}), leases=(LeaseRecord(donor.address, "kept", 4 * MIB),),
    )  # fmt: skip


def test_look_from_where_libvirt_does_not_know_the_vm_changes_nothing(vm: Vm) -> None:
    """Without a pager the VM is broken; in no case is it stopped."""
    before = vm.book.files.record.read_text()
    assert vm.seen().state is VmState.BROKEN
    assert vm.leases() == ["kept"]
    assert vm.book.files.record.read_text() == before
    vm.end_qemu()
    assert vm.seen().state is VmState.STOPPED
    assert vm.leases() == []


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STOPPING, VmState.STOPPED])
def test_healing_waits_for_the_end_of_qemu_in_every_state(vm: Vm, state: VmState) -> None:
    vm.save(state=state)
    for _ in range(2):
        assert vm.seen().state is not VmState.STOPPED
        with locked(vm.book.files):
            observe.heal(vm.book)
    assert vm.leases() == ["kept"]
    vm.end_qemu()
    assert vm.seen().state is VmState.STOPPED
    assert vm.leases() == []


def test_qemu_that_is_known_by_its_record_alone_counts(vm: Vm) -> None:
    """QEMU's command line may have changed, so that the UUID is not found there."""
    known = identify(vm.qemu.pid)
    vm.save(uuid=str(uuid.uuid4()), qemu=known)
    assert vm.seen().state is VmState.BROKEN
    vm.end_qemu()
    assert vm.seen().state is VmState.STOPPED


def test_disk_with_a_writer_counts_though_no_process_is_seen(vm: Vm) -> None:
    vm.end_qemu()
    disk = vm.book.files.disk
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(MIB)])
    argv: list[str | Path] = ["qemu-nbd", "--persistent", f"--socket={vm.paths.state}/n", disk]
    with subprocess.Popen(argv) as writer:
        nbd.wait_for_greeting(vm.paths.state / "n")
        seen = vm.seen()
        assert seen.state in (VmState.BROKEN, VmState.UNMANAGED)
        assert vm.leases() == ["kept"]
        with pytest.raises(HypervisorError, match="a process that cannot be seen from here has its disk .* open"):
            session.down(VM, vm.paths, Stages(), force=True)
        assert vm.leases() == ["kept"]
        writer.terminate()
    assert vm.seen().state is VmState.STOPPED


def test_vm_of_another_machine_is_left_alone(vm: Vm) -> None:
    """The state directory was copied, or lies on a disk that both machines mount."""
    known = identify(vm.qemu.pid)
    assert known is not None
    vm.end_qemu()
    elsewhere = dataclasses.replace(known, boot_id="of another machine")
    vm.save(qemu=elsewhere, machine="another")
    seen = vm.seen()
    assert seen.state is VmState.UNMANAGED
    assert seen.problem is not None and "it was started on another machine, where it may run" in seen.problem.text
    assert seen.problem.advice is not None and f"ghostbox delete --forget {VM} removes it alone" in seen.problem.advice
    with pytest.raises(HypervisorError, match="could not be ended: it was started on another machine") as failed:
        session.delete(VM, vm.paths, Stages(), force=True)
    with pytest.raises(Refused, match=f"VM '{VM}' is unmanaged") as refused:
        session.delete(VM, vm.paths, Stages())
    assert failed.value.hint == refused.value.hint == seen.problem.advice
    assert vm.leases() == ["kept"]
    vm.save(machine=machine_id())
    assert vm.seen().state is VmState.STOPPED, "this machine was started anew since"
    assert vm.leases() == []


def test_vm_of_another_machine_is_forgotten_with_its_memory_left_alone(
    vm: Vm, ghostbox_cli: Callable[..., CliRun]
) -> None:
    vm.end_qemu()
    vm.save(machine="another")
    done = ghostbox_cli("delete", VM, "--yes", "--forget", env=environment(vm))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert f"VM '{VM}' is forgotten here: {vm.book.files.state} is removed, nothing was ended or released" in said
    assert f"give its memory back: ghostbox donor release {vm.donor.address} kept" in said
    assert vm.leases() == ["kept"]
    assert not vm.book.files.state.exists()


def test_only_a_vm_of_another_machine_can_be_forgotten(vm: Vm, ghostbox_cli: Callable[..., CliRun]) -> None:
    env = environment(vm)
    done = ghostbox_cli("delete", VM, "--yes", "--forget", env=env)
    assert done.returncode == 5
    assert f"error: VM '{VM}' is not one that was started on another machine\nwhy: its QEMU (pid" in done.stderr
    assert f"fix: ghostbox delete {VM}" in done.stderr
    done = ghostbox_cli("delete", VM, "--yes", "--forget", "--force", env=env)
    assert (done.returncode, "--force ends a VM, --forget ends nothing: give one of them" in done.stderr) == (2, True)
    vm.save(machine="another")
    done = ghostbox_cli("delete", VM, "--yes", "--forget", env=env)
    assert (done.returncode, "its QEMU (pid" in done.stderr) == (5, True)  # the VM runs here
    vm.end_qemu()
    asked = " ".join(ghostbox_cli("delete", VM, "--forget", env=env).stderr.split())
    assert f"Remove {vm.book.files.state}? VM '{VM}' may run on another machine: if both share this directory" in asked
    assert vm.leases() == ["kept"]
    assert vm.book.files.record.exists()


@pytest.mark.parametrize("state", [VmState.PREPARING, VmState.STARTING])
def test_copy_of_a_vm_that_was_being_started_releases_nothing(vm: Vm, state: VmState) -> None:
    """The VM may run on the other machine since: only a record of this machine shows that no QEMU was started."""
    vm.end_qemu()
    made = frozenset({Made.FILES}) if state is VmState.PREPARING else frozenset({Made.FILES, Made.DOMAIN})
    vm.save(state=state, machine="another", made=made)
    assert vm.seen().state is state
    assert vm.leases() == ["kept"]
    session.forget(VM, vm.paths)
    assert vm.leases() == ["kept"]


def test_what_cannot_be_seen_counts_as_alive_unless_it_was_never_started(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.end_qemu()
    monkeypatch.setattr(process_table, "blind_spot", lambda namespace=None: "/proc hides it")
    seen = vm.seen()
    assert seen.state is VmState.UNMANAGED
    assert seen.problem is not None and "cannot be seen from here: /proc hides it" in seen.problem.text
    assert vm.leases() == ["kept"]
    vm.save(state=VmState.PREPARING, made=frozenset({Made.FILES}))
    assert vm.seen().state is VmState.STOPPED
    assert vm.leases() == []


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.STOPPED])
def test_force_ends_qemu_itself_and_gives_the_memory_back_after_it(vm: Vm, state: VmState) -> None:
    vm.save(state=state, qemu=identify(vm.qemu.pid))
    session.delete(VM, vm.paths, Stages(), force=True)
    assert vm.qemu.wait(20) < 0
    assert vm.leases() == []
    assert not vm.book.files.state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: not root")
@pytest.mark.parametrize("command", ["down", "delete"])
def test_qemu_that_may_not_be_ended_keeps_its_memory_and_the_user_is_told(vm: Vm, command: str) -> None:
    """The process is root's, and the test runs as nobody."""
    for path in (vm.paths.state, *vm.paths.state.rglob("*")):
        os.chown(path, 65534, 65534)
    vm.paths.state.parent.chmod(0o755)
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            what = session.down if command == "down" else session.delete
            what(VM, vm.paths, Stages(), force=True)
        except BaseException as err:
            os.write(sender, f"{err}|{getattr(err, 'why', '')}|{getattr(err, 'hint', '')}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    said, why, hint = os.read(receiver, 4096).decode().split("|")
    assert said == f"VM '{VM}' could not be ended: its QEMU (pid {vm.qemu.pid}) runs; its memory stays where it is"
    assert why == f"process {vm.qemu.pid} cannot be signalled: operation not permitted"
    assert hint.startswith(f"sudo kill {vm.qemu.pid}")
    assert vm.qemu.poll() is None
    assert vm.leases() == ["kept"]
    record = vm.book.load()
    assert record is not None and record.state is VmState.RUNNING


def test_down_of_a_vm_that_libvirt_does_not_know_says_how_to_shut_it_down(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_dir, "find_pager", lambda record, files: vm.qemu.pid)
    with pytest.raises(Refused, match=f"VM '{VM}' cannot be asked to shut down") as caught:
        session.down(VM, vm.paths, Stages())
    assert "libvirt at test:///default does not know the VM, but its QEMU" in str(caught.value.why)
    assert caught.value.hint == f"shut it down from inside (ghostbox shell {VM} -- sudo poweroff)"
    assert vm.leases() == ["kept"]


def test_waiting_for_the_end_and_following_logs_wait_for_qemu(vm: Vm) -> None:
    with pytest.raises(DeadlineExceeded, match=f"VM '{VM}' still runs after") as caught:
        session.wait_stopped(VM, vm.paths, timeout_s=0.1)
    assert caught.value.why == f"its QEMU (pid {vm.qemu.pid}) runs"
    ended = logs.ended(VM, vm.paths)
    assert not ended()
    vm.end_qemu()
    assert ended()
    session.wait_stopped(VM, vm.paths, timeout_s=5)
    with pytest.raises(NotRunning, match="is stopped: it needs no pager"):
        session.recover(VM, vm.paths, Stages())


def test_down_that_was_killed_leaves_a_vm_that_is_shown_as_running(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_dir, "find_pager", lambda record, files: vm.qemu.pid)
    monkeypatch.setattr(liveness, "ask", lambda record: liveness.Known(DomainState.RUNNING))
    record = vm.save(state=VmState.STOPPING)
    assert observe.observe(record, vm.book.files).state is VmState.RUNNING
    with locked(vm.book.files):
        assert observe.observe(record, vm.book.files).state is VmState.STOPPING, "a down is at work"
        assert observe.heal(vm.book) is VmState.RUNNING
    kept = vm.book.load()
    assert kept is not None and kept.state is VmState.RUNNING


def test_up_of_a_vm_that_is_recorded_as_stopped_and_lives_is_refused(
    vm: Vm, ghostbox_cli: Callable[..., CliRun]
) -> None:
    vm.save(state=VmState.STOPPED, made=frozenset(), leases=())
    env = environment(vm)
    done = ghostbox_cli("up", VM, "--donor", vm.donor.address, env=env)
    assert done.returncode == 5, done.stderr
    said = " ".join(done.stderr.split())
    assert f"VM '{VM}' cannot be started: it is recorded as stopped, and its QEMU lives" in said
    assert f"its QEMU (pid {vm.qemu.pid}) runs; its remote memory was given back" in said
    assert vm.qemu.poll() is None


def test_record_that_cannot_be_read_hides_no_other_vm_and_nothing_is_advised_away(
    vm: Vm, ghostbox_cli: Callable[..., CliRun]
) -> None:
    damaged = vm.paths.vm("gbt-damaged")
    make_directory(damaged.state)
    damaged.record.write_text("{")
    env = environment(vm)
    done = ghostbox_cli("list", "--json", env=env)
    assert [each["name"] for each in json.loads(done.stdout)] == [VM]
    assert f"VM 'gbt-damaged': cannot read {damaged.record}" in " ".join(done.stderr.split())
    for command in ("status", "down", "delete"):
        refused = ghostbox_cli(command, "gbt-damaged", env=env)
        assert refused.returncode == 1
        assert "rm " not in refused.stderr
        assert "disk.qcow2 is its disk" in " ".join(refused.stderr.split()), refused.stderr
    assert damaged.record.exists()


def test_record_of_an_earlier_version_is_read(vm: Vm) -> None:
    record = vm.book.load()
    assert record is not None
    text = {key: value for key, value in record.to_json().items() if key not in ("environment", "runtime", "machine",
            "qemu", "pager_process")}  # fmt: skip
    assert Record.from_json(text) == record
