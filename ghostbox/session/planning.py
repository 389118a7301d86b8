# SPDX-License-Identifier: MIT
"""Collect the facts that a plan needs from donors, libvirt and KVM, and make the plan. This changes nothing."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import uuid

from ghostbox import donors
from ghostbox.config import Config
from ghostbox.donors import bench as donor_bench
from ghostbox.donors import known as known_donors
from ghostbox.donors.client import DonorStatus
from ghostbox.errors import HypervisorError, ProgramError, Refused, Untrusted, UsageError
from ghostbox.pager import SOCKET_PATH_BYTES
from ghostbox.paths import Paths
from ghostbox.plan import cloudinit, plan
from ghostbox.plan.placement import Offer
from ghostbox.plan.plan import HostFacts, Virt, VmPlan
from ghostbox.session import backup, images, network, pool, shares, shim_copy
from ghostbox.session.record import Record, VmState
from ghostbox.system import consent, hypervisor, ports
from ghostbox.system.hypervisor.accounts import unreachable_part

_log = logging.getLogger(__name__)
_KNOWN_TIMEOUT_S = 3.0


def make_plan(config: Config, paths: Paths, record: Record | None, *, start_daemon: bool = True) -> VmPlan:
    """Return the plan for ``config.vm``; ``record`` is the VM's record, if it has one.

    Raises:
        UsageError: the configuration makes no sense.
        Refused: a port, the disk's image or a directory cannot be used.
        DonorError, DonorTooSmall: a donor does not answer, or the donors have too little.
        NotFound: no such image.
    """
    if config.pool.insecure:
        consent.give()
    plan.check_sizes(config)
    cloudinit.check_user(config.vm.user)
    addresses = donors_of(config, paths)
    _check_paths(config, paths)
    kept = plan.backup_file(config.pool.backup, config.vm.name)
    if kept is not None:
        backup.check(kept)
    shares.check(config.vm.shares)
    if start_daemon:
        network.check(config.vm.network, config.libvirt.uri)
    image = images.find(config, paths)
    for forward in config.vm.ports:
        if forward.host not in _own_ports(record) and not ports.is_free(forward.host):
            raise Refused(f"port {forward.host} of 127.0.0.1 is in use", hint="choose another with -p HOST:GUEST")
    security_models, filters = _libvirt(config, start_daemon=start_daemon)
    facts = HostFacts(
        *_virt(config),
        uuid=record.uuid if record else str(uuid.uuid4()),
        mac=record.mac if record else new_mac(),
        ssh_port=_ssh_port(record, frozenset(forward.host for forward in config.vm.ports)),
        offers=offers(addresses, record, named=bool(config.pool.donors)),
        image=image,
        shim=shim_copy.place(paths, config.vm.name),
        machine_id=record.uuid.replace("-", "") if record is not None and record.cloned else None,
        security_models=security_models,
        filters=filters,
        links=donor_bench.kept_links(addresses, paths),
        host_costs=donor_bench.kept_host(paths),
    )
    return plan.make(config, paths, facts)


def donors_of(config: Config, paths: Paths) -> tuple[str, ...]:
    """Return the addresses of the donors to ask: those that the VM's definition names, or else all known donors.

    Raises:
        UsageError: there are no donors, or several known donors have a name that the definition uses.
    """
    named = (known_donors.address_of(each, paths) for each in config.pool.donors)
    found = tuple(dict.fromkeys(named)) or tuple(each.address for each in known_donors.load(paths))
    if not found:
        raise UsageError(
            "no donor is named, and none is known",
            hint="run `ghostbox memserver` on another machine, here the line that it prints: ghostbox donor add TOKEN",
        )
    return found


def offers(
    addresses: tuple[str, ...], record: Record | None = None, *, again: bool = False, named: bool = True
) -> tuple[Offer, ...]:
    """Ask the donors for their free memory; a donor that is draining has none.

    Donors that the user drained from the VM of ``record`` are left out. Oddities of the others are logged, unless the
    donors are asked ``again``. If the donors are not ``named`` but only known to this host, those that do not answer
    are left out.

    Raises:
        DonorError: a named donor does not answer, or no known donor does.
        Refused: the user has drained all donors.
    """
    found = _asked(addresses) if not named else list(zip(addresses, donors.query(addresses), strict=True))
    left = [each for each in found if record is not None and pool.is_drained(record, each[1], each[0])]
    for address, _ in left:
        name = "" if record is None else record.name
        flags = " ".join(f"--donor {each}" for each in addresses)
        _log.warning(
            "donor %s was drained from VM '%s' and is not used; to use it again: ghostbox up %s %s",
            *(address, name, name, flags),
        )
    kept = [each for each in found if each not in left]
    if not kept:
        raise Refused(
            "all donors of this VM were drained from it", hint="name those to use again: ghostbox up --donor ADDRESS"
        )
    for line in () if again else donors.oddities(kept):
        _log.warning("%s", line)
    return tuple(_with_own(donors.offer_of(address, status), status, record) for address, status in kept)


def _asked(addresses: tuple[str, ...]) -> list[tuple[str, DonorStatus]]:
    """Ask donors that are only known to this host; those that do not answer are logged and left out.

    Raises:
        DonorError: no donor answers.
    """
    seen = donors.survey(addresses, timeout_s=_KNOWN_TIMEOUT_S)
    found = [(item.address, item.status) for item in seen if item.status is not None]
    if not found:
        return list(zip(addresses, donors.query(addresses), strict=True))
    for item in seen:
        if isinstance(item.error, Untrusted):
            _log.warning("%s: it is left out", item.error.message)
        elif item.error is not None:
            _log.warning("donor %s is known here and does not answer: it is left out", item.address)
    return found


def _with_own(offer: Offer, status: DonorStatus, record: Record | None) -> Offer:
    """Add to an offer what the VM itself holds there: it gives that back before it borrows anew."""
    own = [] if record is None else pool.lent_by(record, status, offer.address)
    return dataclasses.replace(offer, free_bytes=offer.free_bytes + sum(lease.size_bytes for lease in own))


def _own_ports(record: Record | None) -> frozenset[int]:
    """Return the host ports that the running VM itself uses, so that a plan for it may use them."""
    if record is None or record.state not in (VmState.RUNNING, VmState.STOPPING):
        return frozenset()
    return frozenset({record.ssh_port, *(host for host, _ in record.forwards)})


def _virt(config: Config) -> tuple[Virt, str]:
    usable, reason = hypervisor.kvm_usable(config.libvirt.uri)
    return (Virt.KVM if usable else Virt.TCG), reason


def _libvirt(config: Config, *, start_daemon: bool) -> tuple[tuple[str, ...], bool]:
    """Ask for libvirt's security drivers, and whether libvirt can filter what a guest sends.

    A plan that is only shown must not start a daemon; without one, it assumes the drivers that each system libvirt has.
    """
    try:
        with hypervisor.connect(config.libvirt.uri, start_daemon=start_daemon) as connection:
            return connection.security_models(), connection.has_filters()
    except HypervisorError:
        if start_daemon:
            raise
        return (() if "/session" in config.libvirt.uri else ("dac",)), False


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


def new_mac() -> str:
    """Return a random MAC address with QEMU's vendor prefix."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def _ssh_port(record: Record | None, forwarded: frozenset[int]) -> int:
    """Return the port that leads to the guest's SSH server: as before, unless another program or `vm.ports` has it."""
    kept = None if record is None or record.ssh_port in forwarded else record
    if kept is not None and (kept.ssh_port in _own_ports(kept) or ports.is_free(kept.ssh_port)):
        return kept.ssh_port
    return ports.choose(forwarded)
