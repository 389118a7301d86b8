# SPDX-License-Identifier: MIT
"""Finds out what a plan needs to know, and makes it. Asks donors, libvirt and KVM; changes nothing."""

from __future__ import annotations

import os
import secrets
import socket
import uuid
from contextlib import closing

from ghostbox import donor_bench, donors, hypervisor, plan
from ghostbox.config import Config
from ghostbox.errors import HypervisorError, ProgramError, Refused, UsageError
from ghostbox.hypervisor.accounts import unreachable_part
from ghostbox.pager import SOCKET_PATH_BYTES
from ghostbox.paths import Paths
from ghostbox.placement import Offer
from ghostbox.plan import HostFacts, Virt, VmPlan
from ghostbox.session import backup, images, shim_copy
from ghostbox.session.record import Record


def make_plan(config: Config, paths: Paths, record: Record | None, *, start_daemon: bool = True) -> VmPlan:
    """Return the plan for ``config.vm``; ``record`` is what is known of the VM from before.

    Raises:
        UsageError: the configuration makes no sense.
        Refused: something is in the way: a port, the disk's image, a directory.
        DonorError, DonorTooSmall: the donors.
        NotFound: no such image.
    """
    plan.check_sizes(config)
    if not config.pool.donors:
        raise UsageError(
            "no donor is named",
            hint="run `ghostbox memserver` on another machine and give --donor HOST, or set pool.donors",
        )
    _check_same_image(config, record)
    _check_paths(config, paths)
    kept = plan.backup_file(config.pool.backup, config.vm.name)
    if kept is not None:
        backup.check(kept)
    image = images.find(config, paths)
    for forward in config.vm.ports:
        if not _port_is_free(forward.host):
            raise Refused(f"port {forward.host} of 127.0.0.1 is in use", hint="choose another with -p HOST:GUEST")
    facts = HostFacts(
        *_virt(config),
        uuid=record.uuid if record else str(uuid.uuid4()),
        mac=record.mac if record else _new_mac(),
        ssh_port=_ssh_port(record),
        offers=offers(config.pool.donors),
        image=image,
        shim=shim_copy.place(paths, config.vm.name),
        security_models=_security_models(config, start_daemon=start_daemon),
        links=donor_bench.kept_links(config.pool.donors, paths),
        host_costs=donor_bench.kept_host(paths),
    )
    return plan.make(config, paths, facts)


def offers(addresses: tuple[str, ...]) -> tuple[Offer, ...]:
    """Ask the donors what they have free; one that is draining has nothing."""
    return tuple(
        Offer(address, 0 if status.draining else status.free_bytes)
        for address, status in zip(addresses, donors.query(addresses), strict=True)
    )


def _virt(config: Config) -> tuple[Virt, str]:
    usable, reason = hypervisor.kvm_usable(config.libvirt.uri)
    return (Virt.KVM if usable else Virt.TCG), reason


def _security_models(config: Config, *, start_daemon: bool) -> tuple[str, ...]:
    """A plan that is only shown starts no daemon; it then assumes what every system libvirt has."""
    try:
        with hypervisor.connect(config.libvirt.uri, start_daemon=start_daemon) as connection:
            return connection.security_models()
    except HypervisorError:
        if start_daemon:
            raise
        return () if "/session" in config.libvirt.uri else ("dac",)


def _check_same_image(config: Config, record: Record | None) -> None:
    if record is not None and not record.new and record.image != config.vm.image:
        raise Refused(
            f"VM '{record.name}' was made from image '{record.image}', not '{config.vm.image}'",
            hint=f"ghostbox delete {record.name}, or choose another name",
        )


def _check_paths(config: Config, paths: Paths) -> None:
    files = paths.vm(config.vm.name)
    longest = max(files.pager_socket, files.pager_control, key=lambda path: len(os.fsencode(path)))
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES:
        raise Refused(
            f"the path of a socket is too long: {longest}",
            why=f"Linux allows {SOCKET_PATH_BYTES} bytes",
            hint="set GHOSTBOX_RUNTIME_DIR to a shorter directory",
        )
    for program in (paths.pager_program, paths.shim_library):
        if not program.exists():
            raise ProgramError(f"{program} is missing", hint="./bootstrap install")
    account = hypervisor.qemu_user(config.libvirt.uri)
    for path in (files.disk, files.pager_socket, paths.images / "x"):
        closed = unreachable_part(path, account)
        if closed is not None:
            raise Refused(
                f"QEMU cannot reach {path}",
                why=f"user {account.name}, which QEMU runs as, may not pass {closed}",
                hint=f"chmod o+x {closed}, or set libvirt.uri to qemu:///session",
            )


def _new_mac() -> str:
    """Return a random address in the range of QEMU's vendor prefix."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def _ssh_port(record: Record | None) -> int:
    if record is not None and _port_is_free(record.ssh_port):
        return record.ssh_port
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _port_is_free(port: int) -> bool:
    with closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
