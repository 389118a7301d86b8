# SPDX-License-Identifier: MIT
"""Make the reference guests from the first guest's plan: image, processors, disk and cloud-init are the same.

One reference is what a user has without GhostBox: ordinary memory, and swap on a virtio disk behind an NBD server. Its
memory equals all that the first guest has on this machine: node 0, the pager's cache, and the pager's own memory. The
other reference has all of its memory on this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import uuid
from collections.abc import Iterator

from ghostbox import pager
from ghostbox.bench import vm_domain, vm_session
from ghostbox.bench.lab import EXPORT, Lab, missing_tool, resident_bytes
from ghostbox.bench.vm_domain import NbdDisk
from ghostbox.bench.vm_scale import VmScale
from ghostbox.bench.vm_session import Say
from ghostbox.errors import ProgramError
from ghostbox.paths import Paths
from ghostbox.plan.plan import NetworkPlan, VmPlan, domain_name, local_memory
from ghostbox.plan.tiering import Tiering
from ghostbox.session import Book, VmState, guest_files, images
from ghostbox.session.record import Made, locked, now_utc, prepared
from ghostbox.system import hypervisor, ports
from ghostbox.units import MIB

_USE_DISKS = """\
mkswap -q {swap}
swapon {swap}
mkfs.ext4 -q -E nodiscard {files}
mount {files} /mnt
chmod 777 /mnt
"""


@dataclasses.dataclass(frozen=True)
class Disks:
    """Holds the reference's disks over NBD: one for swap, and one for files."""

    swap: NbdDisk
    files: NbdDisk

    @property
    def all(self) -> tuple[NbdDisk, ...]:
        """Return the disks in the order in which the guest has them."""
        return (self.swap, self.files)

    @property
    def setup(self) -> str:
        """Return the script that root runs in the guest to use the disks."""
        return _USE_DISKS.format(swap=self.swap.guest_path, files=self.files.guest_path)


def missing() -> str | None:
    """Return why there can be no reference; None if there can be one."""
    return missing_tool("nbdkit")


@contextlib.contextmanager
def disks(lab: Lab, scale: VmScale) -> Iterator[Disks]:
    """Serve the disks until the end of the block: swap as large as node 1, and space for the file."""
    files_bytes = scale.times_local(scale.weights + scale.database) * 5 // 4 + 64 * MIB
    with lab.nbdkit(scale.remote_bytes) as swap, lab.nbdkit(files_bytes) as files:
        yield Disks(
            NbdDisk("ghostbox-swap", swap.port, EXPORT, swap.host),
            NbdDisk("ghostbox-files", files.port, EXPORT, files.host),
        )


def fair_bytes(scale: VmScale, book: Book) -> int:
    """Return all memory that the guest of ``book`` has on this machine.

    Raises:
        ProgramError: the guest's pager has ended.
    """
    status = pager.status(book.files.pager_control)
    if status is None:
        raise ProgramError("the pager has ended", why=f"its log is {book.files.pager_log}")
    own_bytes = resident_bytes(status.pid)
    at_boot = local_memory(scale.memory_bytes, scale.remote_bytes)
    return at_boot.node0_bytes + at_boot.node1_bytes + scale.cache_bytes + -(-own_bytes // MIB) * MIB


def make_plan(plan: VmPlan, paths: Paths, memory_bytes: int, what: str = "swap") -> VmPlan:
    """Return the plan of the same VM with this much local memory only, and with its own address and files."""
    name = vm_session.own_name(what)
    files = paths.vm(name)
    mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
    return dataclasses.replace(
        plan,
        name=name,
        domain=domain_name(name),
        uuid=str(uuid.uuid4()),
        network=NetworkPlan(mac, ports.choose()),
        memory_bytes=memory_bytes,
        remote_memory_bytes=0,
        guest=dataclasses.replace(plan.guest, tiering=Tiering(on=False, why="one node")),
        shares=(),
        shim=files.state / plan.shim.name,
        files=files,
    )


@contextlib.contextmanager
def started(plan: VmPlan, paths: Paths, disks: tuple[NbdDisk, ...], say: Say) -> Iterator[Book]:
    """Start the VM. Its record has neither a pager nor leases, so it ends like any VM."""
    book = Book(plan.files)
    try:
        say(f"{plan.name}: start")
        with locked(plan.files), hypervisor.connect(plan.libvirt_uri) as connection:
            record = book.save(dataclasses.replace(prepared(plan, None), cache_bytes=0, pager=None))
            guest_files.prepare(plan, images.ready(plan, paths, say), paths, paths.shim_library)
            record = book.save(record.with_made(Made.DOMAIN).to(VmState.STARTING))
            guest_files.begin_console_log(plan.files.console_log)
            connection.create_paused(vm_domain.build(plan, disks))
            connection.resume(plan.domain)
            book.save(record.to(VmState.RUNNING, new=False, started_at=now_utc()))
        yield book
    finally:
        vm_session.remove(plan.name, paths)
