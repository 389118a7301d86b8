# SPDX-License-Identifier: MIT
"""Run the guests of ``ghostbox bench --vm``: one on GhostBox's node 1, and its references (`vm_reference`)."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ghostbox import pager, session
from ghostbox.bench import vm_load, vm_reference, vm_session
from ghostbox.bench.lab import Lab
from ghostbox.bench.vm_load import Phase
from ghostbox.bench.vm_scale import FULL, VmScale
from ghostbox.bench.vm_session import Say, Told
from ghostbox.config import Config
from ghostbox.config.tiering import How
from ghostbox.demo.lenders import LOOPBACK, Place
from ghostbox.errors import DeadlineExceeded, GhostboxError, GuestError
from ghostbox.images import ImageStore
from ghostbox.plan import tiering
from ghostbox.plan.tiering import Tiering
from ghostbox.session import Book, readiness
from ghostbox.session.record import Made
from ghostbox.system import hypervisor, processes
from ghostbox.system.ssh import GuestSsh, OpenCommand, Result
from ghostbox.units import exact_bytes

LoadConfig = Callable[[dict[str, object]], Config]
GHOSTBOX, SWAP, LOCAL = "ghostbox", "swap", "all local"
OWN_PLACE = "/var/tmp/ghostbox-weights"  # noqa: S108 - a path in the guest, which has one user
NBD_PLACE = "/mnt/ghostbox-weights"
_N_LENDERS = 2
_PROGRAM = "ghostbox-guest-load"
_PROGRAM_THERE = f"/tmp/{_PROGRAM}"  # noqa: S108 - the same
_SETUP_TIMEOUT_S = 60.0
_ALIVE_TIMEOUT_S = 60.0
_COMMAND_LETTERS = 40
# A guest reports free pages 2 s after they were freed (PAGE_REPORTING_DELAY, mm/page_reporting.c).
_REPORTING_S = 2.2
_FEW_PAGES = 8192
_NODE0 = "/sys/devices/system/node/node0/meminfo"
_TIERING_STATE = "/run/ghostbox/tiering"
# These statuses mean that a signal ended a command: the shell's, and SSH's (RFC 4254, 6.10: without an exit status).
_KILLED = {
    137: "was killed by a signal",
    -1: "ended without an exit status: by a signal, or its SSH session broke",
}
_KILLS = re.compile(r"out of memory|oom-kill|killed process|segfault|general protection", re.IGNORECASE)
_KERNEL_LINES = 5
# Without tiering, kswapd finds nothing to reclaim in a full node and gives up (MAX_RECLAIM_RETRIES, mm/vmscan.c) until
# another process makes progress there. The amount does not matter: writing the file fails if less was reclaimed.
_WAKE_KSWAPD = "echo 8M > /sys/fs/cgroup/memory.reclaim || true"


@dataclass(frozen=True)
class Guest:
    """Is a guest that is ready for work.

    ``tiering`` is what it booted with; without KVM it is ``emulated``; ``silence_s`` is that of `VmScale`.
    A guest that has hung is not asked again, which would take a timeout each time.
    """

    name: str
    ssh: GuestSsh
    pager_control: Path | None = None
    tiering: Tiering = Tiering(on=False, why="not set")
    emulated: bool = True
    silence_s: float = FULL.silence_s
    _hung: list[str] = field(default_factory=list)

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Run a shell command; its exit status is no error.

        Raises:
            GuestError: the guest hangs since an earlier command, or its connection failed.
            DeadlineExceeded: the command ran longer than ``timeout_s``.
        """
        self._refuse_if_hung()
        try:
            return self.ssh.run(command, timeout_s, stdin=stdin)
        except DeadlineExceeded:
            self._note_if_hung(command)
            raise

    def _refuse_if_hung(self) -> None:
        if self._hung:
            raise GuestError(f"guest '{self.name}' hangs since '{self._hung[0]}'")

    def _note_if_hung(self, command: str) -> None:
        try:
            self.ssh.run("true", _ALIVE_TIMEOUT_S)
        except GhostboxError:
            self._hung.append(command[:_COMMAND_LETTERS])

    def root(self, script: str) -> str:
        """Run a shell script as the guest's root; return its stdout.

        Raises:
            GuestError: the script failed.
        """
        done = self.run("sudo sh -e", _SETUP_TIMEOUT_S, script)
        if done.status != 0:
            why = done.stderr.strip() or script
            raise GuestError(f"a command failed in guest '{self.name}' (status {done.status})", why=why)
        return done.stdout.strip()

    def load(self, words: str) -> list[Phase]:
        """Run the load; return each phase's report (qemu/bench/guest_load.c), with the pager's counters of that time.

        Raises:
            GuestError: the load failed, the guest killed it, or it printed nothing for too long.
        """
        self._refuse_if_hung()
        lines: list[tuple[str, dict[str, float]]] = []
        with self.ssh.opened(f"{_PROGRAM_THERE} {words}", silence_s=self.silence_s) as command:
            rest = b""
            while data := self._received(command, words):
                *whole, rest = (rest + data).split(b"\n")
                lines += [(line.decode(), self.counters()) for line in whole]
            status, said = command.ending()
        if status in _KILLED:
            raise GuestError(f"the load in guest '{self.name}' {_KILLED[status]}", why=self._kernel_said())
        if status != 0:
            raise GuestError(f"the load in guest '{self.name}' failed (status {status})", why=said or None)
        return vm_load.collect(lines)

    def _received(self, command: OpenCommand, words: str) -> bytes:
        try:
            return command.recv(1 << 16)
        except TimeoutError as err:
            self._note_if_hung(words)
            raise GuestError(f"the load in guest '{self.name}' said nothing for {self.silence_s:.0f} s") from err

    def _kernel_said(self) -> str:
        """Return the last lines of the guest's kernel log about killed processes; without any, its last lines."""
        try:
            log = self.root("dmesg").splitlines()
        except GuestError as err:
            return f"the guest's kernel log cannot be read: {err.message}"
        lines = [line for line in log if _KILLS.search(line)] or log
        return "\n".join(["the guest's kernel says:", *lines[-_KERNEL_LINES:]])

    def make_file(self, path: str, n_bytes: int) -> None:
        """Make a file for the load to read, unless it exists."""
        known = self.run(f"stat -c %s {path}", _SETUP_TIMEOUT_S).stdout.strip()
        if known != str(n_bytes):
            self.load(f"file path={path} bytes={n_bytes} write")
            self.forget_files()

    def forget_files(self) -> None:
        """Empty the page cache, so that the next part of the benchmark does not have to."""
        self.root("sync; echo 1 > /proc/sys/vm/drop_caches")

    def settle(self) -> None:
        """Wait until the guest has given back what it freed, so that a run does not begin by fetching dead data.

        Raises:
            DeadlineExceeded: the guest does not stop freeing.
        """
        began_s, began_pages = time.monotonic(), self._discarded()

        def settled() -> bool:
            nonlocal began_s, began_pages
            if time.monotonic() - began_s < _REPORTING_S:
                return False
            before, began_s, began_pages = began_pages, time.monotonic(), self._discarded()
            return began_pages - before < _FEW_PAGES

        processes.wait_until(settled, timeout_s=_SETUP_TIMEOUT_S, what="the guest to give freed memory back")

    def _discarded(self) -> int:
        status = None if self.pager_control is None else pager.status(self.pager_control)
        return 0 if status is None else status.discards.pages

    def programs_bytes(self) -> int:
        """Return how much local RAM the guest's programs can have: of node 0, and the pager's cache."""
        meminfo, zoneinfo = (self.root(f"cat {file}") for file in (_NODE0, "/proc/zoneinfo"))
        status = None if self.pager_control is None else pager.status(self.pager_control)
        return vm_load.programs_bytes(meminfo, zoneinfo) + (0 if status is None else status.cache_bytes)

    def set_tiering(self, wanted: str) -> None:
        """Set the guest's tiering as at boot, to a value of ``guest.tiering``; wake kswapd, so that it can demote.

        Raises:
            GuestError: the guest's kernel cannot do so.
        """
        chosen = tiering.choose(wanted, emulated=self.emulated)
        self.root(dataclasses.replace(chosen, promote_mib_per_s=self.tiering.promote_mib_per_s).script)
        if chosen.how is How.DAMON:
            said = self.root(f"timeout 50 sh -c 'until cat {_TIERING_STATE}; do sleep 1; done' 2> /dev/null")
            if said != "DAMON" and wanted != "auto":
                raise GuestError(f"guest '{self.name}' has no tiering by DAMON", why=said)
        if chosen.on:
            self.root(_WAKE_KSWAPD)

    def set_zswap(self, on: bool) -> None:
        """Let swap go through compressed memory, or not.

        Raises:
            GuestError: the guest's kernel has no zswap.
        """
        switch = "/sys/module/zswap/parameters/enabled"
        found = self.root(f"if test -e {switch}; then echo {'Y' if on else 'N'} > {switch}; echo there; fi")
        if on and found != "there":
            raise GuestError("the guest's kernel has no zswap (CONFIG_ZSWAP)")

    def counters(self) -> dict[str, float]:
        """Return the pager's counters; nothing if the guest has no pager."""
        status = None if self.pager_control is None else pager.status(self.pager_control)
        if status is None:
            return {}
        found = {f"pager_{key}": value for key, value in status.faults}
        found |= {f"pager_readahead_{key}": value for key, value in status.readahead}
        found |= {f"pager_evicted_{key}": value for key, value in status.evictions}
        found["pager_read_bytes"] = sum(donor.read_bytes for donor in status.donors)
        found["pager_written_bytes"] = sum(donor.written_bytes for donor in status.donors)
        return {key: float(value) for key, value in found.items()}


def went(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return how far each counter advanced."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


@dataclass(frozen=True)
class Setup:
    """Holds what the guests are made with.

    ``say`` receives what is going on; ``emulated``: guests of this machine run without KVM.
    """

    lab: Lab
    load_config: LoadConfig
    scale: VmScale
    say: Say
    emulated: bool


def is_emulated(load_config: LoadConfig) -> bool:
    """Tell whether guests of this machine are emulated."""
    usable, _ = hypervisor.kvm_usable(load_config({}).libvirt.uri)
    return not usable


def check(setup: Setup) -> None:
    """Check, before anything is started, whether the guests can be made.

    Raises:
        HypervisorError: libvirt does not answer.
        NotFound: there is no image of the configured name.
        ProgramError: a program of GhostBox is missing.
    """
    config = setup.load_config({})
    setup.lab.paths.program(_PROGRAM)
    hypervisor.connect(config.libvirt.uri).close()
    ImageStore(setup.lab.paths.images).get(config.vm.image)


def kept(setup: Setup) -> dict[str, Guest]:
    """Return the guests, which boot the first time that a guest is asked for and run until the end."""
    return setup.lab.kept("guests", lambda: running(setup))


@contextlib.contextmanager
def running(setup: Setup) -> Iterator[dict[str, Guest]]:
    """Boot the guests in parallel; at the end of the block nothing of them is left.

    Raises:
        GhostboxError: a guest does not come up; then nothing is left, either.
    """
    paths, scale = setup.lab.paths, setup.scale
    vm_session.sweep(paths)
    with contextlib.ExitStack() as stack:
        lent = stack.enter_context(vm_session.lent(_N_LENDERS, scale.remote_bytes, paths, place(setup.lab)))
        settings = _settings(scale, [each.address for each in lent])
        config = setup.load_config({**settings, "pool.insecure": place(setup.lab) is not LOOPBACK})
        plan = session.make_plan(config, paths, None)
        books = {GHOSTBOX: stack.enter_context(_started(config, setup))}
        if vm_reference.missing() is None:
            disks = stack.enter_context(vm_reference.disks(setup.lab, scale))
            reference = vm_reference.make_plan(plan, paths, vm_reference.fair_bytes(scale, books[GHOSTBOX]))
            books[SWAP] = stack.enter_context(vm_reference.started(reference, paths, disks.all, setup.say))
        local = vm_reference.make_plan(plan, paths, scale.memory_bytes + scale.remote_bytes, "local")
        books[LOCAL] = stack.enter_context(vm_reference.started(local, paths, (), setup.say))
        guests = {name: stack.enter_context(_ready(name, book, setup)) for name, book in books.items()}
        if SWAP in guests:
            guests[SWAP].root(disks.setup)
        yield guests


def place(lab: Lab) -> Place:
    """Return where the guests' donors run: at the far end of the lab's wire, if it has one."""
    return LOOPBACK if lab.cable is None else Place(lab.prefix(far=True), lab.cable.there.address)


def _settings(scale: VmScale, donors: list[str]) -> dict[str, object]:
    return {
        "vm.name": vm_session.own_name(GHOSTBOX),
        "vm.local": exact_bytes(scale.local_bytes),
        "vm.remote_memory": scale.remote_bytes,
        "vm.cpus": 2,
        "vm.ports": [],
        "pool.donors": donors,
        "guest.tiering": "auto",
    }


@contextlib.contextmanager
def _started(config: Config, setup: Setup) -> Iterator[Book]:
    """Start the guest on remote memory like ``ghostbox up``, without waiting for its boot."""
    name, paths = config.vm.name, setup.lab.paths
    try:
        with vm_session.explained():
            session.up(config, paths, Told(name, setup.say), wait=False)
        book = Book(paths.vm(name))
        book.need(name, paths)
        yield book
    finally:
        vm_session.remove(name, paths)


@contextlib.contextmanager
def _ready(name: str, book: Book, setup: Setup) -> Iterator[Guest]:
    """Wait until the guest takes a login, and copy the load program into it."""
    record = book.record
    timeout_s = setup.load_config({}).vm.boot_timeout_s
    with vm_session.explained():
        readiness.wait_ready(book, Told(record.name, setup.say), timeout_s=timeout_s)
    with readiness.guest(record, book.files) as ssh:
        ssh.put_text(f"{_PROGRAM_THERE}.b64", base64.b64encode(setup.lab.paths.program(_PROGRAM).read_bytes()).decode())
        control = book.files.pager_control if Made.PAGER in record.made else None
        guest = Guest(name, ssh, control, record.tiering or Guest.tiering, setup.emulated, setup.scale.silence_s)
        guest.root(
            f"base64 -d {_PROGRAM_THERE}.b64 > {_PROGRAM_THERE}; chmod 755 {_PROGRAM_THERE}; rm {_PROGRAM_THERE}.b64"
        )
        yield guest
