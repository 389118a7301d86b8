# SPDX-License-Identifier: MIT
"""The two guests of ``ghostbox bench --vm``: one on GhostBox's node 1, one that swaps to a disk behind an NBD server.

Both are made from one plan, so that image, processors, disk and cloud-init are the same. Both have a record, as any
VM: what a killed run left is seen by ``ghostbox list`` and removed by the next run, which `sweep` sees to.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import secrets
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox import hypervisor, pager, processes, session
from ghostbox.bench import vm_domain
from ghostbox.bench.lab import EXPORT, Lab, missing_tool, resident_bytes
from ghostbox.bench.vm_domain import NbdDisk
from ghostbox.bench.vm_scale import VmScale
from ghostbox.config import Config
from ghostbox.demo import lenders
from ghostbox.errors import DeadlineExceeded, GhostboxError, GuestError, Interrupted, NotFound, ProgramError
from ghostbox.images import ImageStore
from ghostbox.paths import Paths
from ghostbox.plan import NetworkPlan, VmPlan, domain_name
from ghostbox.session import Book, Record, VmState, guest_files, images, readiness
from ghostbox.session.record import Made, locked
from ghostbox.session.signals import Interrupts
from ghostbox.ssh import GuestSsh
from ghostbox.units import MIB

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
LoadConfig = Callable[[dict[str, object]], Config]
SWAP = "swap"
_PREFIX = "bench"
_N_LENDERS = 2
OWN_PLACE, NBD_PLACE = "/var/tmp/ghostbox-weights", "/mnt/ghostbox-weights"
_PROGRAM = "/tmp/ghostbox-guest-load"
_SETUP_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 900.0
_USE_DISKS = """\
mkswap -q {swap}
swapon {swap}
mkfs.ext4 -q -E nodiscard {files}
mount {files} /mnt
chmod 777 /mnt
"""
_TIERING = "echo {mode} > /proc/sys/kernel/numa_balancing; echo {demotion} > /sys/kernel/mm/numa/demotion_enabled"


@dataclass(frozen=True)
class Guest:
    """A guest that is ready for work."""

    name: str
    ssh: GuestSsh
    pager_control: Path | None = None

    def root(self, script: str) -> str:
        """Run a shell script as the guest's root; return its stdout.

        Raises:
            GuestError: it failed.
        """
        done = self.ssh.run("sudo sh -e", _SETUP_TIMEOUT_S, stdin=script)
        if done.status != 0:
            raise GuestError(f"a command failed in the guest (status {done.status})", why=done.stderr.strip() or script)
        return done.stdout.strip()

    def load(self, words: str) -> dict[str, dict[str, Any]]:
        """Run the load; return what each phase reports (qemu/bench/guest_load.c).

        Raises:
            GuestError: it failed, or the guest killed it.
        """
        done = self.ssh.run(f"{_PROGRAM} {words}", _LOAD_TIMEOUT_S)
        if done.status != 0:
            killed = "the guest has too little memory for it and killed it" if done.status == 137 else None
            why = done.stderr.strip() or killed
            raise GuestError(f"the load in guest {self.name} failed (status {done.status})", why=why)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return {str(phase["phase"]): phase for phase in found}

    def make_file(self, path: str, n_bytes: int) -> None:
        """Make a file for the load to read, unless it is there."""
        known = self.ssh.run(f"stat -c %s {path}", _SETUP_TIMEOUT_S).stdout.strip()
        if known != str(n_bytes):
            self.load(f"file path={path} bytes={n_bytes} write")
            self.forget_files()

    def forget_files(self) -> None:
        """Empty the page cache, so that no other part of the benchmark has to."""
        self.root("sync; echo 1 > /proc/sys/vm/drop_caches")

    def set_tiering(self, on: bool) -> None:
        """Turn promotion and demotion on or off, as at boot; a guest without node 1 has none."""
        self.root(_TIERING.format(mode=2 if on else 0, demotion="true" if on else "false"))

    def counters(self) -> dict[str, float]:
        """Return the pager's counters; nothing where there is no pager."""
        status = None if self.pager_control is None else pager.status(self.pager_control)
        if status is None:
            return {}
        found = {f"pager_{key}": value for key, value in status["faults"].items()}
        found |= {f"pager_readahead_{key}": value for key, value in status["readahead"].items()}
        found |= {f"pager_evicted_{key}": value for key, value in status["evictions"].items()}
        for key in ("read_bytes", "written_bytes"):
            found[f"pager_{key}"] = sum(donor[key] for donor in status["donors"])
        return {key: float(value) for key, value in found.items()}


@dataclass(frozen=True)
class Setup:
    """What the guests are made with. ``say`` is told what is going on."""

    lab: Lab
    load_config: LoadConfig
    scale: VmScale
    say: Say


def reference_missing() -> str | None:
    """Say why there can be no reference; None if there can."""
    return missing_tool("nbdkit")


def check(setup: Setup) -> None:
    """Find out before anything is started whether the guests can be: libvirt, image, our own programs.

    Raises:
        HypervisorError: libvirt does not answer.
        NotFound: there is no image of the configured name.
        ProgramError: one of our programs is missing.
    """
    config = setup.load_config({})
    hypervisor.connect(config.libvirt.uri).close()
    ImageStore(setup.lab.paths.images).get(config.vm.image)
    _program(setup.lab.paths)


@contextlib.contextmanager
def running(setup: Setup) -> Iterator[dict[str, Guest]]:
    """Boot the guests side by side; at the end of the block nothing of them is left.

    Raises:
        GhostboxError: one does not come up; then nothing is left, either.
    """
    paths, pid = setup.lab.paths, os.getpid()
    sweep(paths)
    with contextlib.ExitStack() as stack:
        lent = stack.enter_context(_lent(paths, pid, setup.scale.remote_bytes))
        config = setup.load_config(_settings(setup.scale, f"{_PREFIX}-{pid}-ghostbox", lent))
        plan = session.make_plan(config, paths, None)
        books = {"ghostbox": stack.enter_context(_ghostbox(config, paths, setup.say))}
        disks: dict[str, NbdDisk] = {}
        if reference_missing() is None:
            disks = {name: stack.enter_context(_nbd_disk(setup, name, size)) for name, size in _disk_bytes(setup.scale)}
            memory_bytes = _fair_bytes(setup.scale, books["ghostbox"])
            reference = _reference_plan(plan, paths, f"{_PREFIX}-{pid}-swap", memory_bytes)
            books[SWAP] = stack.enter_context(_swapping(reference, paths, tuple(disks.values()), setup.say))
        guests = {name: stack.enter_context(_ready(name, book, setup)) for name, book in books.items()}
        if disks:
            guests[SWAP].root(_USE_DISKS.format(swap=disks["swap"].guest_path, files=disks["files"].guest_path))
        yield guests


def _disk_bytes(scale: VmScale) -> list[tuple[str, int]]:
    """Return the reference's disks: swap as large as node 1, a file system with room for the file."""
    return [("swap", scale.remote_bytes), ("files", scale.times_local(scale.weights) * 5 // 4 + 64 * MIB)]


@contextlib.contextmanager
def _nbd_disk(setup: Setup, name: str, size_bytes: int) -> Iterator[NbdDisk]:
    with setup.lab.nbdkit(size_bytes) as server:
        yield NbdDisk(f"ghostbox-{name}", server.port, EXPORT)


def sweep(paths: Paths) -> None:
    """Remove what a run that was killed left: its VMs and its donors."""
    for name in session.names(paths):
        if _is_left(name):
            _remove(name, paths)
    lenders.stop([each for each in lenders.running(paths) if _is_left(each.name)], paths)


def _is_left(name: str) -> bool:
    found = re.fullmatch(rf"{_PREFIX}-(\d+)-\w+", name)
    return found is not None and not processes.pid_alive(int(found[1]))


def _settings(scale: VmScale, name: str, lent: list[lenders.Lender]) -> dict[str, object]:
    return {
        "vm.name": name,
        "vm.memory": scale.node0_bytes,
        "vm.remote_memory": scale.remote_bytes,
        "vm.cpus": 2,
        "vm.ports": [],
        "pool.cache": scale.cache_bytes,
        "pool.donors": [each.address for each in lent],
        "guest.tiering": True,
    }


@contextlib.contextmanager
def _lent(paths: Paths, pid: int, size_bytes: int) -> Iterator[list[lenders.Lender]]:
    """Run donors on loopback."""
    names = tuple(f"{_PREFIX}-{pid}-{number + 1}" for number in range(_N_LENDERS))
    try:
        yield lenders.start(names, size_bytes // _N_LENDERS, paths)
    finally:
        with _shielded():
            lenders.stop([each for each in lenders.running(paths) if each.name in names], paths)


@contextlib.contextmanager
def _ghostbox(config: Config, paths: Paths, say: Say) -> Iterator[Book]:
    """Start the guest on remote memory as ``ghostbox up`` does; it boots."""
    name = config.vm.name
    try:
        with _explained():
            session.up(config, paths, _Told(name, say), wait=False)
        book = Book(paths.vm(name))
        book.need(name, paths)
        yield book
    finally:
        _remove(name, paths)


def _fair_bytes(scale: VmScale, book: Book) -> int:
    """Return the memory of the reference: all that the other guest has on this machine, the pager's own included."""
    status = pager.status(book.files.pager_control)
    if status is None:
        raise ProgramError("the pager has ended", why=f"its log is {book.files.pager_log}")
    own_bytes = resident_bytes(int(status["pid"]))
    return scale.node0_bytes + scale.cache_bytes + -(-own_bytes // MIB) * MIB


def _reference_plan(plan: VmPlan, paths: Paths, name: str, memory_bytes: int) -> VmPlan:
    files = paths.vm(name)
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
    return dataclasses.replace(
        plan,
        name=name,
        domain=domain_name(name),
        uuid=str(uuid.uuid4()),
        network=NetworkPlan(mac, port),
        memory_bytes=memory_bytes,
        remote_memory_bytes=0,
        guest=dataclasses.replace(plan.guest, tiering=False),
        shares=(),
        shim=files.state / plan.shim.name,
        files=files,
    )


@contextlib.contextmanager
def _swapping(plan: VmPlan, paths: Paths, disks: tuple[NbdDisk, ...], say: Say) -> Iterator[Book]:
    """Start the reference; it boots. Its record has neither pager nor leases, so it goes as any VM goes."""
    book = Book(plan.files)
    try:
        say(f"{plan.name}: start")
        with locked(plan.files), hypervisor.connect(plan.libvirt_uri) as connection:
            record = book.save(_record(plan))
            guest_files.prepare(plan, images.ready(plan, paths, say), paths, paths.shim_library)
            record = book.save(record.with_made(Made.DOMAIN).to(VmState.STARTING))
            connection.create_paused(vm_domain.build(plan, disks))
            connection.resume(plan.domain)
            book.save(record.to(VmState.RUNNING, new=False, started_at=_now()))
        yield book
    finally:
        _remove(plan.name, paths)


def _record(plan: VmPlan) -> Record:
    return Record(
        name=plan.name,
        state=VmState.PREPARING,
        uuid=plan.uuid,
        mac=plan.network.mac,
        ssh_port=plan.network.ssh_port,
        created_at=_now(),
        domain=plan.domain,
        libvirt_uri=plan.libvirt_uri,
        image=plan.image.name,
        user=plan.guest.user,
        virt=str(plan.virt),
        cpus=plan.cpus,
        memory_bytes=plan.memory_bytes,
        remote_memory_bytes=0,
        cache_bytes=0,
        disk_bytes=plan.disk_bytes,
        made=frozenset({Made.FILES}),
    )


@contextlib.contextmanager
def _ready(name: str, book: Book, setup: Setup) -> Iterator[Guest]:
    """Wait until the guest lets us in, and bring the program there."""
    record = book.record
    assert record is not None
    timeout_s = setup.load_config({}).vm.boot_timeout_s
    with _explained():
        readiness.wait_ready(book, _Told(record.name, setup.say), timeout_s=timeout_s)
    with readiness.guest(record, book.files) as ssh:
        ssh.put_text(f"{_PROGRAM}.b64", base64.b64encode(_program(setup.lab.paths).read_bytes()).decode())
        control = book.files.pager_control if Made.PAGER in record.made else None
        guest = Guest(name, ssh, control)
        guest.root(f"base64 -d {_PROGRAM}.b64 > {_PROGRAM}; chmod 755 {_PROGRAM}; rm {_PROGRAM}.b64")
        yield guest


def _program(paths: Paths) -> Path:
    program = paths.native / "ghostbox-guest-load"
    if not program.exists():
        raise ProgramError(f"{program} is not there", hint="install GhostBox again: ./bootstrap install")
    return program


def _remove(name: str, paths: Paths) -> None:
    """Remove a VM, whatever came of it and whatever signal comes."""
    with _shielded():
        try:
            session.delete(name, paths, _Told(name, _log.debug), force=True)
        except NotFound:
            return
        except GhostboxError as err:
            _log.warning("VM '%s' could not be removed: %s", name, err.message)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    interrupts = Interrupts()
    with interrupts.watched(), interrupts.shielded():
        yield
    if interrupts.pending:
        _log.debug("a signal came while the benchmark cleaned up")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A session's errors say that the VM is kept and how to go on with it. This one goes."""
    try:
        yield
    except Interrupted as err:
        raise KeyboardInterrupt from err
    except (GuestError, DeadlineExceeded) as err:
        raise type(err)(err.message, why=err.why) from err


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class _Told:
    """A session's progress, put into the benchmark's one line."""

    def __init__(self, name: str, say: Say) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._say = name, say

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[_ToldStage]:
        """Name the stage."""
        self._say(f"{self._name}: {name}")
        yield _ToldStage(lambda text: self._say(f"{self._name}: {name}: {text}"))

    def note(self, text: str) -> None:
        """Keep a line between stages for the log."""
        _log.debug("%s: %s", self._name, text)


@dataclass(frozen=True)
class _ToldStage:
    say: Say


def went(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return how far counters went."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}
