# SPDX-License-Identifier: MIT
"""What happens before a memserver serves: options checked, control port opened, data plane adopted or started."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
from dataclasses import dataclass, replace

from ghostbox.errors import GhostboxError, Refused, UsageError
from ghostbox.host import host_name
from ghostbox.memserver import memory
from ghostbox.memserver.data_plane import DataPlane, PlaneSettings, PlaneStatus
from ghostbox.memserver.pressure import PressureLimit, read_pressure
from ghostbox.memserver.records import PlaneRecord
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
    """The options of ``ghostbox memserver``. A port of 0 picks one; ``size`` as it was written."""

    name: str
    size: str = memory.AUTO
    reserve_bytes: int = 2 * GIB
    bind: str = "127.0.0.1"
    nbd_port: int = NBD_PORT
    control_port: int = CONTROL_PORT
    drain_timeout_s: float = 300.0
    pressure: PressureLimit | None = None
    insecure: bool = False


def default_name() -> str:
    """Return the machine's name, as far as it may be a memserver's."""
    return host_name(otherwise="donor")


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
        listener.bind((bind, port))
    except OSError as err:
        listener.close()
        raise GhostboxError(
            f"cannot listen on {bind} port {port} (control API): {os.strerror(err.errno or 0).lower()}",
            hint="choose another --control-port (0 picks one) or --bind",
        ) from err
    return listener


def open_plane(options: ServiceOptions, settings: PlaneSettings, known: PlaneRecord | None) -> tuple[DataPlane, bool]:
    """Return the data plane and whether it was adopted.

    One that an earlier control plane left is adopted if it is what the options ask for; if it is not, but holds no
    lease, it is replaced.

    Raises:
        Refused: the one left over holds leases and differs from the options; or too little memory.
        ProgramError: it cannot be started, or the one left over does not answer.
    """
    plane = DataPlane.adopt(settings, known)
    if plane is not None:
        status = plane.status()
        differences = _differences(options, status)
        if not differences:
            return plane, True
        if status.exports:
            plane.close()
            raise _differs(options, status, differences)
        _log.info("the data plane left over (pid %d) holds nothing and is replaced", status.pid)
        plane.stop()
        plane.close()
    size_bytes = memory.size_to_lend(options.size, options.reserve_bytes, memory.read_facts())
    return DataPlane.start(replace(settings, size_bytes=size_bytes)), False


def _differences(options: ServiceOptions, status: PlaneStatus) -> list[str]:
    """Return what the options ask for and the running data plane is not; ``auto`` and port 0 take what is there."""
    found = []
    wanted_bytes = memory.requested_bytes(options.size, memory.read_facts())
    if wanted_bytes not in (None, status.size_bytes):
        found.append(f"lends {format_bytes(status.size_bytes)}, --size says {options.size}")
    if options.nbd_port not in (0, status.port):
        found.append(f"listens on port {status.port}, --port says {options.nbd_port}")
    if ipaddress.ip_address(options.bind) != ipaddress.ip_address(status.host):
        found.append(f"listens on {status.host}, --bind says {options.bind}")
    return found


def _differs(options: ServiceOptions, status: PlaneStatus, differences: list[str]) -> GhostboxError:
    return Refused(
        f"memserver '{options.name}' still holds {len(status.exports)} leases in a data plane (pid {status.pid})"
        f" that differs from the options: it {' and '.join(differences)}",
        hint=f"to go on with it: --size {status.size_bytes} --port {status.port} --bind {status.host};"
        f" to give its memory up: kill {status.pid}",
    )
