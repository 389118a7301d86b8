# SPDX-License-Identifier: MIT
"""What happens before a memserver serves: options checked, control port opened, data plane adopted or started."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass, replace

from ghostbox.errors import GhostboxError, Refused, UsageError
from ghostbox.memserver import memory
from ghostbox.memserver.data_plane import PRIVILEGED_PORTS, DataPlane, PlaneSettings, PlaneStatus
from ghostbox.memserver.pressure import PressureLimit, read_pressure
from ghostbox.memserver.records import PlaneRecord
from ghostbox.processes import ControlError
from ghostbox.units import GIB, format_bytes

_log = logging.getLogger(__name__)

NBD_PORT = 10809
CONTROL_PORT = 10810
_INSECURE = (
    "anyone who reaches the ports can read and overwrite the memory that VMs keep here,"
    " and lease all that this machine lends"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ServiceOptions:
    """The options of ``ghostbox memserver``. A port of 0 picks one; ``size`` as it was written.

    ``drain_timeout_s`` is None where the wait for the last lease has no limit.
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
    insecure: bool = False


def default_name() -> str:
    """Return the machine's name, as far as it may be a memserver's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:63] or "donor"


def check_options(options: ServiceOptions) -> ServiceOptions:
    """Return the options with ``bind`` as a plain IP address.

    Raises:
        UsageError: the name or the address cannot be used.
        Refused: the address is not loopback and ``insecure`` is not set; or the memory pressure cannot be read.
    """
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
    if not address.is_loopback and not options.insecure:
        raise Refused(
            f"refusing to listen on {bind}: there is no encryption and no authentication yet",
            why=_INSECURE,
            hint="on a network that you trust wholly, add --insecure",
        )
    if not address.is_loopback:
        _log.warning("listening on %s without encryption or authentication: %s", bind, _INSECURE)
    if options.pressure is not None:
        read_pressure(options.pressure.path)
    return replace(options, bind=bind)


def listen(bind: str, port: int) -> socket.socket:
    """Return a socket bound to the control port.

    Raises:
        GhostboxError: the address is not ours, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # getaddrinfo knows the number of the interface that a link-local address names (fe80::1%eth0).
        flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
        [(*_, address)] = socket.getaddrinfo(bind, port, family, socket.SOCK_STREAM, flags=flags)
        listener.bind(address)
    except OSError as err:
        listener.close()
        why = f"it has no interface {bind.partition('%')[2]}" if isinstance(err, socket.gaierror) else err.strerror
        hint = "choose another --control-port (0 picks one) or --bind"
        if isinstance(err, PermissionError) and port < PRIVILEGED_PORTS:
            hint = f"ports below {PRIVILEGED_PORTS} are root's: choose another --control-port, or run as root"
        raise GhostboxError(
            f"cannot listen on {bind} port {port} (control API): {str(why or err).lower()}", hint=hint
        ) from err
    return listener


def listen_again(bind: str, port: int) -> socket.socket | None:
    """Return a socket bound to a control port of before, for hosts that know that one; None if that cannot be."""
    try:
        return listen(bind, port)
    except GhostboxError as err:
        _log.info("%s", err.message)
        return None


def open_plane(options: ServiceOptions, settings: PlaneSettings, known: PlaneRecord | None) -> tuple[DataPlane, bool]:
    """Return the data plane and whether it was adopted.

    One that an earlier control plane left is adopted if it is what the options ask for. If it is not, but holds no
    lease, it is replaced. If it holds leases, it listens on the address of the options from now on, and on the earlier
    ones as well: hosts look for their memory there.

    Raises:
        Refused: the one left over holds leases and has another size, or is not to be reached as before; or too little
            memory.
        ProgramError: it cannot be started, or the one left over does not answer.
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
    """Make a data plane that was found what the options ask for; False if it is not, and may be replaced."""
    try:
        wanted_bytes = memory.requested_bytes(options.size, memory.read_facts())
        other_size = wanted_bytes not in (None, status.size_bytes)
        elsewhere = not _listens_there(options, status)
        if not status.exports:
            return not (other_size or elsewhere)
        if other_size:
            raise _differs(
                options,
                status,
                f"lends {format_bytes(status.size_bytes)}, --size says {options.size}",
                hint=f"go on with it: --size {status.size_bytes}; another size needs an empty donor:"
                " ghostbox memserver drain",
            )
        if elsewhere:
            _move(options, plane, status)
        return True
    except BaseException:
        plane.close()
        raise


def _listens_there(options: ServiceOptions, status: PlaneStatus) -> bool:
    """Tell whether it is reached where the options say first of all; port 0 takes the one that is there."""
    same_host = ipaddress.ip_address(options.bind) == ipaddress.ip_address(status.host)
    return same_host and options.nbd_port in (0, status.port)


def _move(options: ServiceOptions, plane: DataPlane, status: PlaneStatus) -> None:
    """Have a data plane with leases listen where the options say, too."""
    before = [(status.host, status.port), *status.also]
    named = ", ".join(f"{host} port {port}" for host, port in before)
    open_to_network = [host for host, _ in before if not ipaddress.ip_address(host).is_loopback]
    if open_to_network and not options.insecure:
        raise _differs(
            options,
            status,
            f"is reached on {named} by those who hold them, and without --insecure it must not listen there",
            hint=f"go on with it: --bind {open_to_network[0]} --insecure; or get its memory back first:"
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
            hint=f"go on with it: --bind {status.host} --port {status.port}"
            if old
            else "another --bind or --port (0 takes the one that it has)",
        ) from err
    _log.warning("its leases are reached on %s as before, besides %s", named, options.bind)


def _differs(options: ServiceOptions, status: PlaneStatus, what: str, *, hint: str, why: str | None = None) -> Refused:
    return Refused(
        f"memserver '{options.name}' still holds {len(status.exports)} leases in a data plane (pid {status.pid})"
        f" that differs from the options: it {what}",
        why=why,
        hint=hint,
    )
