# SPDX-License-Identifier: MIT
"""Announce a donor by multicast DNS while it runs, on the networks that it can be reached from.

The announcement is a task of the memserver's own event loop and has no thread. It ends by being cancelled, and takes
its records back then (RFC 6762, section 10.1: goodbye packets). Whatever goes wrong with it is logged and tried again:
a donor serves without it.

    no interface ──an address comes up──► announced ──addresses change──► taken back, announced anew
                                             └──cancelled──► taken back
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from ghostbox.discovery import interfaces
from ghostbox.discovery.interfaces import Interface
from ghostbox.discovery.record import SERVICE, Announced

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_RETRY_AFTER_S = 30.0
_REGISTER_TIMEOUT_S = 20.0
_LONGEST_INSTANCE = 48  # of the 63 bytes of a label: zeroconf adds a number if the name is taken


@dataclass(frozen=True)
class _Place:
    """Is where a donor is announced: the interfaces as zeroconf takes them, and the addresses to tell."""

    endpoints: tuple[str | int, ...]
    addresses: tuple[str, ...]
    names: tuple[str, ...]


def is_announced(bind: str) -> bool:
    """Tell whether a donor that listens on ``bind`` (an IP address) can be reached from other machines."""
    return not ipaddress.ip_address(bind).is_loopback


async def announce(what: Announced, bind: str, port: int) -> None:
    """Announce a donor until this is cancelled.

    Args:
        what: what to say of it.
        bind: the IP address that its control API listens on; ``0.0.0.0`` and ``::`` mean all of a kind.
        port: the port of its control API.
    """
    complaint = ""
    while True:
        try:
            place = await asyncio.to_thread(_place, bind)
            if place.addresses:
                await _announce_at(place, what, bind, port)
                continue
            pause_s = _LOOK_EVERY_S
        except Exception as err:  # a fault in the announcement must not end the donor
            text = f"this donor cannot be announced by mDNS: {err or type(err).__name__}"
            _log.log(logging.DEBUG if text == complaint else logging.WARNING, "%s", text, exc_info=_verbose())
            complaint, pause_s = text, _RETRY_AFTER_S
        await asyncio.sleep(pause_s)


async def _announce_at(place: _Place, what: Announced, bind: str, port: int) -> None:
    """Announce a donor until its addresses change."""
    zeroconf = AsyncZeroconf(interfaces=list(place.endpoints))
    try:
        label = what.name.replace(".", "-")[:_LONGEST_INSTANCE]
        info = ServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=port,
            properties=what.properties(),
            parsed_addresses=list(place.addresses),
        )
        async with asyncio.timeout(_REGISTER_TIMEOUT_S):
            await (await zeroconf.async_register_service(info, allow_name_change=True))
        _log.info("announced by mDNS as %s on %s", info.name, ", ".join(place.names))
        while await asyncio.to_thread(_place, bind) == place:
            await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        try:
            await zeroconf.async_close()
        except Exception as err:  # must not take the place of the cancellation, which ends the task
            _log.debug("the announcement by mDNS was not taken back: %s", err)


def _place(bind: str) -> _Place:
    """Return where a donor that listens on ``bind`` is announced now; nowhere if the address is not there."""
    everywhere = ipaddress.ip_address(bind).is_unspecified
    version = ipaddress.ip_address(bind).version
    found = interfaces.find()
    used: list[Interface] = []
    addresses: list[str] = []
    for each in found:
        own = [address for address in each.addresses if _matches(address, bind, version, everywhere=everywhere)]
        # An address that the owner chose is announced whatever is behind it.
        skipped = interfaces.why_skipped(each, found) if everywhere else interfaces.why_unusable(each)
        if own and not skipped:
            used.append(each)
            addresses += [address.partition("%")[0] for address in own]
    return _Place(_of_version(used, version), tuple(addresses), tuple(each.name for each in used))


def _matches(address: str, bind: str, version: int, *, everywhere: bool) -> bool:
    if everywhere:
        return ipaddress.ip_address(address).version == version
    return ipaddress.ip_address(address) == ipaddress.ip_address(bind)


def _of_version(used: Sequence[Interface], version: int) -> tuple[str | int, ...]:
    """Return the interfaces as zeroconf takes them, only those of the address family that the donor listens in.

    A host without IPv4 asks over IPv6 only, and the other way round, but it could not reach the donor either.
    """
    return tuple(each for each in interfaces.endpoints(used) if isinstance(each, int) == (version == 6))


def _verbose() -> bool:
    return _log.isEnabledFor(logging.DEBUG)
