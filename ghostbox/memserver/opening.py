# SPDX-License-Identifier: MIT
"""Prepare a memserver: check its options, open the control port, adopt or start the data plane."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass, replace

from ghostbox.errors import GhostboxError, Refused, UsageError
from ghostbox.memserver import memory
from ghostbox.memserver.data_plane import PRIVILEGED_PORTS, DataPlane, PlaneSettings
from ghostbox.memserver.model import Address, PlaneStatus
from ghostbox.memserver.pressure import PressureLimit, read_pressure
from ghostbox.memserver.records import PlaneRecord
from ghostbox.system.processes import ControlError
from ghostbox.units import GIB, format_bytes

_log = logging.getLogger(__name__)

NBD_PORT = 10809
CONTROL_PORT = 10810
_INSECURE = (
    "anyone who reaches the ports can read and overwrite the memory that VMs keep here,"
    " and lease all that this machine lends"
)
TRUSTS = "every host that asks to be paired is paired, and nobody is asked"
"""What ``trust_network`` means, for the log and the audit log."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ServiceOptions:
    """Holds the options of ``ghostbox memserver``. A port of 0 lets the kernel choose; ``size`` is as it was written.

    ``drain_timeout_s`` is None where the wait for the last lease has no limit. ``secure``: only paired hosts are
    served, over TLS; `check_options` sets it for an address that others reach, unless ``insecure`` is set.
    ``trust_network``: a host that asks to be paired is paired.
    """

    name: str
    size: str = memory.AUTO
    reserve_bytes: int = 2 * GIB
    bind: str = "127.0.0.1"
    nbd_port: int = NBD_PORT
    control_port: int = CONTROL_PORT
    machine: str | None = None
    drain_timeout_s: float | None = None
    remind_every_s: float = 60.0
    pressure: PressureLimit | None = None
    lock_memory: bool = False
    insecure: bool = False
    secure: bool = False
    announce: bool = True
    trust_network: bool = False


def default_name() -> str:
    """Return the machine's host name, with the characters that a memserver's name may have."""
    return name_of(socket.gethostname())


def name_of(machine: str) -> str:
    """Return the name that a memserver of this machine has if it is given none."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", machine).strip("-._")[:63] or "donor"


def check_options(options: ServiceOptions) -> ServiceOptions:
    """Return the options with ``bind`` as a plain IP address, and ``secure`` as it is to be.

    Raises:
        UsageError: the name or the address cannot be used, or options contradict each other.
        Refused: the memory pressure cannot be read.
    """
    if options.secure and options.insecure:
        raise UsageError("--secure and --insecure contradict each other", hint="leave one of them out")
    if not _NAME.fullmatch(options.name):
        raise UsageError(
            f"'{options.name}' cannot be the name of a memserver",
            hint="use up to 63 letters, digits, '.', '_' or '-', the first a letter or digit",
        )
    bind = "127.0.0.1" if options.bind == "localhost" else options.bind.strip("[]")
    try:
        address = ipaddress.ip_address(bind)
    except ValueError as err:
        raise UsageError(
            f"'{options.bind}' is not an IP address",
            hint="--bind takes an address of this machine (ip -brief address), or 0.0.0.0 for all of them",
        ) from err
    secure = options.secure or not (address.is_loopback or options.insecure)
    if options.trust_network:
        _check_trust(secure=secure)
    if not (address.is_loopback or secure):
        _log.warning("listening on %s without encryption or authentication: %s", bind, _INSECURE)
    if options.pressure is not None:
        read_pressure(options.pressure.path)
    return replace(options, bind=bind, secure=secure)


def _check_trust(*, secure: bool) -> None:
    if not secure:
        raise UsageError(
            "--trust-network pairs hosts, and this memserver lends without pairing",
            hint="leave it out; or start without --insecure, on an address of the network or with --secure",
        )
    _log.warning("--trust-network: %s", TRUSTS)


def listen(bind: str, port: int) -> socket.socket:
    """Return a socket that listens on the control port.

    bind(2) alone would not tell that another program has the port and listens a moment later (SO_REUSEADDR, socket(7)).

    Raises:
        GhostboxError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # getaddrinfo looks up the number of the interface that a link-local address names (fe80::1%eth0).
        flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
        [(*_, address)] = socket.getaddrinfo(bind, port, family, socket.SOCK_STREAM, flags=flags)
        listener.bind(address)
        listener.listen()
    except OSError as err:
        listener.close()
        why = f"no interface {bind.partition('%')[2]} exists" if isinstance(err, socket.gaierror) else err.strerror
        hint = "choose another --control-port (0 picks one) or --bind"
        if isinstance(err, PermissionError) and port < PRIVILEGED_PORTS:
            hint = f"ports below {PRIVILEGED_PORTS} are root's: choose another --control-port, or run as root"
        raise GhostboxError(
            f"cannot listen on {bind} port {port} (control API): {str(why or err).lower()}", hint=hint
        ) from err
    return listener


def listen_again(bind: str, port: int) -> socket.socket | None:
    """Return a socket at an earlier control address, which hosts may know; None if it cannot be bound."""
    try:
        return listen(bind, port)
    except GhostboxError as err:
        _log.info("%s", err.message)
        return None


def open_plane(options: ServiceOptions, settings: PlaneSettings, known: PlaneRecord | None) -> tuple[DataPlane, bool]:
    """Return the data plane and whether it was adopted.

    A data plane that an earlier control plane left is adopted if it fits the options. If it does not fit and holds no
    lease, it is replaced. If it holds leases, it listens on the options' address from now on, and on the earlier
    addresses as well: hosts look for their memory there.

    Raises:
        Refused: the data plane holds leases and has another size, or must not listen on its earlier addresses; or there
            is too little memory.
        ProgramError: the data plane cannot be started, or one that was left does not answer.
    """
    plane = DataPlane.adopt(settings, known)
    if plane is not None:
        status = plane.status()
        if _adopted(options, plane, status):
            return plane, True
        _log.info("the data plane left over (pid %d) holds nothing and is replaced", status.pid)
        plane.stop()
        plane.close()
    size_bytes = memory.size_to_lend(options.size, options.reserve_bytes, memory.read_facts())
    return DataPlane.start(replace(settings, size_bytes=size_bytes)), False


def _adopted(options: ServiceOptions, plane: DataPlane, status: PlaneStatus) -> bool:
    """Fit a data plane that was found to the options; False if it does not fit and holds nothing."""
    try:
        wanted_bytes = memory.requested_bytes(options.size, memory.read_facts())
        other_size = wanted_bytes not in (None, status.size_bytes)
        elsewhere = not _listens_there(options, status)
        if not status.exports:
            return not (options.secure != plane.tls or other_size or elsewhere or options.lock_memory != status.locked)
        if other_size:
            raise _differs(
                options,
                status,
                f"lends {format_bytes(status.size_bytes)}, --size says {options.size}",
                hint=f"to keep it: --size {status.size_bytes}; another size needs an empty donor:"
                " ghostbox memserver drain",
            )
        if options.lock_memory and not status.locked:
            raise _differs(
                options,
                status,
                "does not lock its memory, some of which may be in this machine's swap",
                hint="to keep it: no --lock-memory; to lock it, get the memory back first: ghostbox memserver drain",
            )
        if options.secure != plane.tls:
            raise _differs(
                options,
                status,
                "serves its leases over TLS" if plane.tls else "serves its leases without TLS",
                hint=f"to keep it: {'--secure' if plane.tls else '--insecure'}; or get its memory back first, with"
                " the options as they were: ghostbox memserver drain",
            )
        if elsewhere:
            _move(options, plane, status)
        return True
    except BaseException:
        plane.close()
        raise


def _listens_there(options: ServiceOptions, status: PlaneStatus) -> bool:
    """Tell whether the data plane's first address and port are the options'; port 0 accepts any port."""
    same_host = ipaddress.ip_address(options.bind) == ipaddress.ip_address(status.host)
    return same_host and options.nbd_port in (0, status.port)


def _move(options: ServiceOptions, plane: DataPlane, status: PlaneStatus) -> None:
    """Let a data plane with leases listen at the options' address, too."""
    before = [Address(host=status.host, port=status.port), *status.also]
    named = ", ".join(f"{each.host} port {each.port}" for each in before)
    open_to_network = [each.host for each in before if not ipaddress.ip_address(each.host).is_loopback]
    if open_to_network and not (options.insecure or options.secure):
        raise _differs(
            options,
            status,
            f"listens on {named}, where hosts reach their leases; that is not allowed without --insecure",
            hint=f"to keep it: --bind {open_to_network[0]} --insecure; or get its memory back first:"
            " ghostbox memserver drain",
        )
    try:
        plane.listen(options.bind, options.nbd_port or status.port)
    except ControlError as err:
        old = err.code == "unknown-command"
        raise _differs(
            options,
            status,
            f"listens on {named}" + (", and is of an older version that cannot listen elsewhere" if old else ""),
            why=None if old else err.message,
            hint=f"to keep it: --bind {status.host} --port {status.port}"
            if old
            else "choose another --bind or --port (0 takes the port that the data plane has)",
        ) from err
    _log.warning("the leases can still be reached on %s, besides %s", named, options.bind)


def _differs(options: ServiceOptions, status: PlaneStatus, what: str, *, hint: str, why: str | None = None) -> Refused:
    return Refused(
        f"memserver '{options.name}' still holds {len(status.exports)} leases in a data plane (pid {status.pid})"
        f" that differs from the options: it {what}",
        why=why,
        hint=hint,
    )
