# SPDX-License-Identifier: MIT
"""Connect to libvirt, with the calls that a VM's life needs. Domains are transient: they are gone when they end."""

from __future__ import annotations

import enum
import errno
import os
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import libvirt

from ghostbox.errors import DeadlineExceeded, HypervisorError, LibvirtDenied
from ghostbox.plan.domain_xml import METADATA_NAMESPACE
from ghostbox.system.closing import Closing
from ghostbox.system.hypervisor import accounts, daemon, session_daemon

_CONNECT_TIMEOUT_S = 100.0
_NO_ANSWER = (
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_NO_CONNECT,
)
_DENIED = (
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_OPERATION_DENIED,
)
# The daemon asks polkit over the system's bus. An error there is an internal error of libvirt's, and means a refusal.
_DENIED_BY = (libvirt.VIR_FROM_AUTH, libvirt.VIR_FROM_DBUS, libvirt.VIR_FROM_POLKIT)


class DomainState(enum.StrEnum):
    """Names the states of a domain that matter to GhostBox."""

    ABSENT = "absent"
    RUNNING = "running"
    PAUSED = "paused"
    ENDING = "ending"
    CRASHED = "crashed"


class DiskTrouble(enum.StrEnum):
    """Names why a write failed, for which QEMU stopped a domain's CPUs and which it will repeat."""

    FULL = "full"
    FAILED = "failed"


@dataclass(frozen=True)
class FailedWrite:
    """Holds why a write failed, and the disk's name in the domain (``vda``); None if libvirt does not name it."""

    trouble: DiskTrouble
    target: str | None


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.ENDING,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.ABSENT,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}

# QEMU 10 drops BLOCK_IO_ERROR events that follow another within a second; libvirt then knows no reason, and only the
# disks' own states show it.
_DISK_REASONS = (libvirt.VIR_DOMAIN_PAUSED_IOERROR, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN)


@dataclass(frozen=True)
class DomainInfo:
    """Describes a domain of GhostBox: libvirt's name, the VM's name, the state directory of its installation."""

    domain: str
    vm: str
    state_dir: str
    state: DomainState


@dataclass(frozen=True)
class Taken:
    """Describes a domain that has a wanted name: whether it runs, is defined, and its metadata if GhostBox made it."""

    runs: bool
    defined: bool
    info: DomainInfo | None


class Hypervisor(Closing):
    """Is an open connection and a context manager. Every method raises HypervisorError when libvirt refuses."""

    def __init__(self, connection: Any, uri: str) -> None:
        self._connection = connection
        self.uri = uri

    def close(self) -> None:
        """Close the connection."""
        try:
            self._connection.close()
        except libvirt.libvirtError:
            return

    def security_models(self) -> tuple[str, ...]:
        """Return the security drivers of this host (``apparmor``, ``selinux``, ``dac``)."""
        with _wrapped("ask libvirt for its capabilities"):
            root = ET.fromstring(self._connection.getCapabilities())  # noqa: S314 - libvirt's own words
        return tuple(model.text or "" for model in root.iterfind("host/secmodel/model"))

    def create_paused(self, xml: str) -> None:
        """Start a transient domain whose CPUs do not run yet."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_VALIDATE
        with _wrapped("start the domain"):
            self._connection.createXML(xml, flags)

    def suspend(self, domain: str, *, uuid: str | None = None) -> None:
        """Stop the CPUs; everything else stays."""
        with _wrapped(f"pause domain {domain}"):
            self._need(domain, uuid).suspend()

    def resume(self, domain: str, *, uuid: str | None = None) -> None:
        """Let the CPUs run."""
        with _wrapped(f"resume domain {domain}"):
            self._need(domain, uuid).resume()

    def shutdown(self, domain: str, *, uuid: str | None = None) -> None:
        """Press the power button (ACPI), and return at once."""
        with _wrapped(f"shut down domain {domain}"):
            found = self._find(domain, uuid)
            if found is not None:
                found.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def reset(self, domain: str, *, uuid: str | None = None) -> None:
        """Press the reset button, and return at once: the guest boots anew, memory and disks stay."""
        with _wrapped(f"reset domain {domain}"):
            self._need(domain, uuid).reset()

    def destroy(self, domain: str, *, uuid: str | None = None) -> None:
        """End the domain now. A domain that is gone is no error."""
        with _wrapped(f"end domain {domain}"):
            found = self._find(domain, uuid)
            if found is not None:
                _ignore_gone(found.destroy)

    def state(self, domain: str, *, uuid: str | None = None) -> DomainState:
        """Return the state of a domain, ABSENT if libvirt does not know it."""
        with _wrapped(f"ask for the state of domain {domain}"):
            found = self._find(domain, uuid)
            if found is None:
                return DomainState.ABSENT
            try:
                return _STATES.get(found.state()[0], DomainState.RUNNING)
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return DomainState.ABSENT
                raise

    def disk_trouble(self, domain: str, *, uuid: str | None = None) -> FailedWrite | None:
        """Return the failed write for which QEMU stopped the domain's CPUs; None if there is none."""
        with _wrapped(f"ask for the disk errors of domain {domain}"):
            found = self._find(domain, uuid)
            if found is None:
                return None
            state, reason = found.state()
            if state != libvirt.VIR_DOMAIN_PAUSED or reason not in _DISK_REASONS:
                return None
            errors = found.diskErrors()
            if not errors and reason != libvirt.VIR_DOMAIN_PAUSED_IOERROR:
                return None
            return failed_write(errors)

    def wait_absent(self, domain: str, *, timeout_s: float, uuid: str | None = None) -> bool:
        """Wait until the domain is gone; return whether it is."""
        deadline = time.monotonic() + timeout_s
        while self.state(domain, uuid=uuid) is not DomainState.ABSENT:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def info(self, domain: str, *, uuid: str | None = None) -> DomainInfo | None:
        """Return GhostBox's metadata in a domain; None if the domain does not exist or GhostBox did not make it."""
        with _wrapped(f"read domain {domain}"):
            found = self._find(domain, uuid)
            return None if found is None else _info(found)

    def name_taken_by(self, domain: str) -> Taken | None:
        """Return the domain that has a name already; None if there is none."""
        with _wrapped(f"look for domain {domain}"):
            found = self._find(domain)
            return None if found is None else Taken(bool(found.isActive()), bool(found.isPersistent()), _info(found))

    def list_ours(self) -> list[DomainInfo]:
        """Return all domains that have GhostBox's metadata."""
        with _wrapped("list the domains"):
            found = [_info(each) for each in self._connection.listAllDomains()]
        return [each for each in found if each is not None]

    def network_runs(self, name: str) -> bool | None:
        """Tell whether a libvirt network runs; None if there is no network of that name."""
        with _wrapped(f"ask for the network {name}"):
            try:
                return bool(self._connection.networkLookupByName(name).isActive())
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                    return None
                raise

    def leased_address(self, network: str, mac: str) -> str | None:
        """Return the IPv4 address that a libvirt network has leased to a MAC, the latest if there are several."""
        with _wrapped(f"ask for the addresses on network {network}"):
            leases = self._connection.networkLookupByName(network).DHCPLeases(mac)
        found = [each for each in leases if each.get("type") == libvirt.VIR_IP_ADDR_TYPE_IPV4]
        return str(max(found, key=lambda each: each["expirytime"])["ipaddr"]) if found else None

    def has_filters(self) -> bool:
        """Tell whether this libvirt can filter what a domain sends (its nwfilter driver; it calls ebtables)."""
        try:
            self._connection.numOfNWFilters()
        except libvirt.libvirtError:
            return False
        return shutil.which("ebtables", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None

    def define_filter(self, xml: str) -> None:
        """Make a network filter, or replace its rules, which apply to running domains at once."""
        with _wrapped("define a network filter"):
            self._connection.nwfilterDefineXML(xml)

    def undefine_filter(self, name: str) -> None:
        """Remove a network filter. A filter that is gone is no error."""
        with _wrapped(f"remove the network filter {name}"):
            try:
                self._connection.nwfilterLookupByName(name).undefine()
            except libvirt.libvirtError as err:
                if err.get_error_code() not in {libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_SUPPORT}:
                    raise

    def _need(self, domain: str, uuid: str | None) -> Any:
        """Return a domain; raise libvirt's own error if there is none of this name and UUID."""
        found = self._connection.lookupByName(domain)
        return found if uuid is None or found.UUIDString() == uuid else self._connection.lookupByUUIDString(uuid)

    def _find(self, domain: str, uuid: str | None = None) -> Any | None:
        """Return a domain or None. With ``uuid``, a domain of that name with another UUID does not count."""
        try:
            return self._need(domain, uuid)
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise


def failed_write(errors: Mapping[str, int]) -> FailedWrite:
    """Return the failed write from libvirt's error codes by disk; a disk without space comes first."""
    full = [target for target, code in errors.items() if code == libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE]
    return FailedWrite(DiskTrouble.FULL if full else DiskTrouble.FAILED, min(full or errors, default=None))


def connect(uri: str, *, start_daemon: bool = True, environment: Mapping[str, str] | None = None) -> Hypervisor:
    """Connect to libvirt, starting its daemon if none answers.

    ``environment`` is of the login whose session libvirt is meant, if that may be another login.

    Raises:
        LibvirtDenied: libvirt runs, but does not let this user connect; no daemon was started.
        HypervisorError: the URI is wrong, or the daemon does not start.
        DeadlineExceeded: the daemon was started and does not answer.
    """
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    if environment is not None and uri.endswith(":///session") and session_daemon.is_another(environment):
        return _connect_elsewhere(uri, environment, start_daemon=start_daemon)
    try:
        return Hypervisor(libvirt.open(uri), uri)
    except libvirt.libvirtError as err:
        no_answer = err.get_error_code() in _NO_ANSWER and not _is_denied(err)
        if not start_daemon or not uri.endswith(":///system") or not no_answer:
            raise _connect_error(uri, err) from err
    daemon.start()
    return Hypervisor(_open_patiently(uri), uri)


def _connect_elsewhere(uri: str, environment: Mapping[str, str], *, start_daemon: bool) -> Hypervisor:
    """Connect to the session libvirt of another login environment of the same user, through its socket.

    libvirt's library reads the variables that lead to the socket only once, so setting them here would be too late.
    """
    error: libvirt.libvirtError | None = None
    for started in (False, True):
        if started and not (start_daemon and session_daemon.start(uri, environment)):
            break
        for path in session_daemon.sockets(environment):
            try:
                return Hypervisor(libvirt.open(session_daemon.uri_of(uri, path)), uri)
            except libvirt.libvirtError as err:
                error = err
    where = session_daemon.directory(environment)
    why = "it has no socket" if error is None else error.get_error_message() or str(error)
    raise HypervisorError(f"the session libvirt in {where} does not answer", why=why) from error


def _open_patiently(uri: str) -> Any:
    """Open a connection to a daemon that is starting; without KVM it probes each QEMU first, for a minute."""
    deadline = time.monotonic() + _CONNECT_TIMEOUT_S
    while True:
        try:
            return libvirt.open(uri)
        except libvirt.libvirtError as err:
            if _is_denied(err):
                raise _connect_error(uri, err) from err
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"libvirt was started and does not answer at {uri} within {_CONNECT_TIMEOUT_S:.0f} s",
                    why=err.get_error_message(),
                ) from err
        time.sleep(0.1)


def _connect_error(uri: str, err: libvirt.libvirtError) -> HypervisorError:
    message = err.get_error_message() or str(err)
    if _is_denied(err):
        return LibvirtDenied(f"libvirt at {uri} does not let this user connect", why=message, hint=accounts.way_in(uri))
    hint = "check libvirt.uri (`ghostbox config show --origin`)"
    return HypervisorError(f"cannot connect to libvirt at {uri}", why=message, hint=hint)


def _is_denied(err: libvirt.libvirtError) -> bool:
    """Tell whether libvirt runs and denies access: by its answer, or by its socket's permissions."""
    if err.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR:
        return err.get_int1() in (errno.EACCES, errno.EPERM)  # virReportSystemError() sets int1 to errno
    return err.get_error_code() in _DENIED or err.get_error_domain() in _DENIED_BY


@contextmanager
def _wrapped(what: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as err:
        raise HypervisorError(f"cannot {what}", why=err.get_error_message() or str(err)) from err


def _ignore_gone(call: Callable[[], object]) -> None:
    try:
        call()
    except libvirt.libvirtError as err:
        if err.get_error_code() not in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}:
            raise


def _info(domain: Any) -> DomainInfo | None:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE)
        state = _STATES.get(domain.state()[0], DomainState.RUNNING)
    except libvirt.libvirtError as err:
        if err.get_error_code() in {libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN}:
            return None
        raise
    element = ET.fromstring(text)  # noqa: S314 - GhostBox's own text, which libvirt has kept
    return DomainInfo(domain.name(), element.get("name", ""), element.get("state", ""), state)
