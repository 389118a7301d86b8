# SPDX-License-Identifier: MIT
"""Ask the networks of this machine which donors announce themselves (multicast DNS).

Everything heard comes from whoever is on the network. It is bounded and made printable here. An address is kept only if
it is in a network of an interface that was asked: an announcement must not send this host elsewhere, nor to itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from zeroconf import BadTypeInNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from ghostbox.discovery import interfaces, record
from ghostbox.discovery.interfaces import Interface
from ghostbox.discovery.record import SERVICE, Announced
from ghostbox.donors.client import Address, printable
from ghostbox.errors import GhostboxError

MOST_HEARD = 256
"""How many announcements are looked at; more are no home network, or somebody floods it."""

_MOST_ADDRESSES = 8
_LONGEST_INSTANCE = 63


@dataclass(frozen=True)
class Heard:
    """Holds one announcement: ``instance``, its name on the network, and the ``addresses`` of its control API.

    ``elsewhere`` are announced addresses that are in none of the networks asked, and so are not used. ``said`` is None
    if the announcement makes no sense; ``fault`` says why.
    """

    instance: str
    addresses: tuple[Address, ...]
    elsewhere: tuple[str, ...]
    said: Announced | None
    fault: str = ""


def listen(used: Sequence[Interface], timeout_s: float) -> list[Heard]:
    """Ask on these interfaces, and return the announcements that came within ``timeout_s``.

    Raises:
        GhostboxError: multicast DNS cannot be used on this machine.
    """
    try:
        return asyncio.run(_listen(used, timeout_s))
    except OSError as err:
        raise GhostboxError(
            f"cannot ask for donors by mDNS: {err.strerror or err}",
            hint="another program may hold UDP port 5353 for itself alone; or give addresses: ghostbox donor scan"
            " 192.168.7.2",
        ) from err


async def _listen(used: Sequence[Interface], timeout_s: float) -> list[Heard]:
    zeroconf = AsyncZeroconf(interfaces=interfaces.endpoints(used))
    asked: dict[str, asyncio.Task[Heard | None]] = {}
    deadline = asyncio.get_running_loop().time() + timeout_s

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        gone = asked.pop(name, None) if state_change is not ServiceStateChange.Added else None
        if gone is not None:
            gone.cancel()
        if state_change is not ServiceStateChange.Removed and name not in asked and len(asked) < MOST_HEARD:
            asked[name] = asyncio.ensure_future(_resolve(zeroconf, name, used, deadline))

    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
        await asyncio.sleep(timeout_s)
        await browser.async_cancel()
        answers = await asyncio.gather(*asked.values())
    finally:
        await zeroconf.async_close()
    return [answer for answer in answers if answer is not None]


async def _resolve(zeroconf: Zeroconf, name: str, used: Sequence[Interface], deadline: float) -> Heard | None:
    """Return an announcement; None if no more than its name came."""
    try:
        info = AsyncServiceInfo(SERVICE, name)
        left_s = max(deadline - asyncio.get_running_loop().time(), 0.1)
        await info.async_request(zeroconf, left_s * 1000)
    except BadTypeInNameException:
        return Heard(_instance(name), (), (), None, "its name has a wrong form")
    if not info.port:
        return None
    return heard(_instance(name), info.port, info.parsed_scoped_addresses(), info.text, used)


def heard(instance: str, port: int, addresses: Sequence[str], text: bytes, used: Sequence[Interface]) -> Heard:
    """Return an announcement from its parts as they came over the network.

    Args:
        instance: the name of the announcement, already printable.
        port: the port of its SRV record.
        addresses: its addresses; the zone of a link-local one is the number of the interface, if there is one.
        text: its TXT record.
        used: the interfaces that were asked.
    """
    near: list[Address] = []
    elsewhere: list[str] = []
    for address in addresses[:_MOST_ADDRESSES]:
        found = _reachable(address, used)
        near += [Address(each, port) for each in found]
        elsewhere += [] if found else [printable(address)]
    try:
        said = record.parse(text)
    except ValueError as err:
        return Heard(instance, tuple(near), tuple(elsewhere), None, str(err))
    return Heard(instance, tuple(near), tuple(elsewhere), said)


def _reachable(address: str, used: Sequence[Interface]) -> list[str]:
    """Return an announced address as a program of this host names it, if it is in a network that was asked.

    A link-local address without a zone may be behind any of the interfaces.
    """
    host, _, zone = address.partition("%")
    parsed = ipaddress.ip_address(host)
    if parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified:
        return []
    if parsed.version == 6 and parsed.is_link_local:
        names = [each.name for each in used if not zone or zone in (each.name, str(each.index))]
        return [f"{host}%{name}" for name in names]
    return [str(parsed)] if any(each.holds(host) for each in used) else []


def _instance(name: str) -> str:
    return printable(name.removesuffix(f".{SERVICE}"))[:_LONGEST_INSTANCE]
