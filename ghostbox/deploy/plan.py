# SPDX-License-Identifier: MIT
"""Decide what deploying changes on a machine, or why it cannot be done: from its facts alone."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ghostbox.deploy.facts import Facts, Place, Sudo, Version
from ghostbox.errors import NotFound, Refused
from ghostbox.units import MIB, format_bytes

PYTHON: Version = (3, 11)
"""The oldest Python that GhostBox runs on (`requires-python`)."""
_SPARE_BYTES = 64 * MIB  # compiled modules, state, logs


class Start(enum.StrEnum):
    """Names how the memserver is started: by systemd, or in the background, once."""

    SERVICE = "service"
    BACKGROUND = "background"


@dataclass(frozen=True)
class Needs:
    """Describes what a bundle needs: for which processor it is, the C library, its sizes on the way and there."""

    version: str
    machine: str
    glibc: Version
    packed_bytes: int
    unpacked_bytes: int


@dataclass(frozen=True)
class Plan:
    """Describes a deployment. ``arguments`` are the memserver's; ``changes`` say all that is changed, in order."""

    place: Place
    as_root: bool
    start: Start
    version: str
    name: str
    arguments: tuple[str, ...]
    changes: tuple[str, ...]

    @property
    def is_there(self) -> bool:
        """Tell whether the version has been copied before."""
        return self.version in self.place.versions


def check_machine(facts: Facts, target: str, machine: str) -> None:
    """Check what does not depend on the bundle.

    Raises:
        Refused: the machine has another system or processor, no GNU C library, or no Python that is new enough.
    """
    if facts.kernel != "Linux" or facts.machine != machine:
        raise Refused(
            f"{target} is a machine of another kind: {facts.kernel} on {facts.machine}",
            why=f"this host has programs for Linux on {machine} alone",
            hint="build GhostBox there: ./bootstrap install --role donor",
        )
    if facts.glibc is None:
        raise Refused(
            f"{target} has another C library: {facts.libc or 'unknown'}",
            why="the programs of this host need the GNU C library (glibc)",
            hint="build GhostBox there: ./bootstrap install --role donor",
        )
    wanted = _text(PYTHON)
    if facts.python is None:
        raise Refused(
            f"{target} has no python3{' that runs' if facts.python_lacks else ''}",
            why=facts.python_lacks or None,
            hint=f"install Python {wanted} or later there, then again",
        )
    if facts.python < PYTHON:
        raise Refused(
            f"{target} has Python {_text(facts.python)} ({facts.python_path}), which is too old",
            hint=f"Python {wanted} or later is needed there, as python3: Debian 12 has it",
        )
    if facts.python_lacks:
        raise Refused(
            f"the Python of {target} is incomplete: {facts.python_lacks}",
            hint="install the whole of it there: apt-get install python3",
        )


def chosen(facts: Facts, target: str, *, user: bool, may_ask: bool) -> tuple[Place, bool]:
    """Return where to install, and whether that is done as root by sudo.

    Raises:
        Refused: root's rights are needed and cannot be had.
    """
    if user:
        return facts.home_place, False
    if facts.sudo is Sudo.MISSING:
        raise _no_rights(facts, target, "sudo is not installed there")
    if facts.sudo is Sudo.ASKS and not may_ask:
        raise _no_rights(facts, target, "sudo wants a password, or refuses; without a terminal it cannot be asked for")
    return facts.system_place, facts.sudo is not Sudo.ROOT


def _no_rights(facts: Facts, target: str, why: str) -> Refused:
    return Refused(
        f"{facts.user} may not install for all of {target}",
        why=why,
        hint=f"log in as root; or add --user, which installs into {facts.home_place.path} of {facts.user}",
    )


def make(  # what is wanted, each by its name
    facts: Facts,
    target: str,
    needs: Needs,
    place: Place,
    *,
    as_root: bool,
    name: str,
    arguments: Sequence[str],
) -> Plan:
    """Return the plan.

    Raises:
        Refused: the C library is too old, the disk too full, or something that is not ours is in the way.
    """
    if facts.glibc is None or facts.glibc < needs.glibc:
        raise Refused(
            f"the C library of {target} is too old: {facts.libc}",
            why=f"the programs of this host need glibc {_text(needs.glibc)} or later",
            hint="deploy from a host whose system is as old, or build GhostBox there: ./bootstrap install --role donor",
        )
    _check_place(place, target)
    if place.arguments and place.arguments[0] != name:
        raise Refused(
            f"the donor on {target} is called '{place.arguments[0]}', and its leases are that name's",
            hint=f"leave --name out; or remove it first: ghostbox donor undeploy {target}",
        )
    start = Start.SERVICE if _has_systemd(facts, place) else Start.BACKGROUND
    plan = Plan(place, as_root, start, needs.version, name, tuple(arguments), ())
    wanted_bytes = needs.unpacked_bytes + _SPARE_BYTES
    if not plan.is_there and place.free_bytes < wanted_bytes:
        raise Refused(
            f"the disk of {target} is too full: {format_bytes(place.free_bytes)} are free for {place.path}",
            why=f"a donor takes {format_bytes(wanted_bytes)} there",
            hint="make space there: df -h shows which file system is full",
        )
    changes = _changes(plan, needs, facts, is_new=not place.ours)
    return replace(plan, changes=changes)


def _has_systemd(facts: Facts, place: Place) -> bool:
    return facts.systemd if place.path == facts.system_place.path else facts.user_systemd


def _check_place(place: Place, target: str) -> None:
    if place.exists and not place.ours:
        raise Refused(
            f"{place.path} of {target} exists, and `ghostbox donor deploy` has not made it",
            hint="move it away there, then again",
        )
    if place.unit and not place.ours:
        raise Refused(
            f"{target} has a service ghostbox-donor already, which was not deployed from a host",
            hint="there: ghostbox service uninstall donor; or keep it, and pair with it: ghostbox donor add",
        )


def _changes(plan: Plan, needs: Needs, facts: Facts, *, is_new: bool) -> tuple[str, ...]:
    place, who = plan.place, "root" if plan.as_root else facts.user
    found = []
    if not plan.is_there:
        found.append(f"copy {format_bytes(needs.packed_bytes)} to {place.path}/versions/{plan.version}, as {who}")
    if place.current != plan.version:
        former = f", instead of {place.current}" if place.current else ""
        found.append(f"let {place.path}/current be {plan.version}{former}")
    if is_new:
        found.append(f"link {link_of(place, facts)}, unless something is there")
    command = " ".join(("memserver", *plan.arguments))
    again = "" if is_new else "; leases stay"
    if plan.start is Start.SERVICE:
        found.append(f"write and start ghostbox-donor.service: {command}{again}")
    else:
        found.append(f"start {command}, in the background{again}")
    found.append(f"pair this host with donor '{plan.name}', unless it is, and note it for `ghostbox up`")
    return tuple(found)


def link_of(place: Place, facts: Facts) -> str:
    """Return the path of the link by which the command is found there."""
    if place.path == facts.system_place.path:
        return "/usr/local/bin/ghostbox"
    return f"{facts.home}/.local/bin/ghostbox"


def runtime_of(place: Place, facts: Facts) -> str:
    """Return the directory of sockets. A user's own is not that of a login, which ends with the login."""
    return "/run/ghostbox-donor" if place.path == facts.system_place.path else f"{place.path}/run"


def removable(facts: Facts, target: str, *, user: bool, may_ask: bool) -> tuple[Place, bool]:
    """Return the installation to remove, and whether that takes sudo.

    Raises:
        NotFound: nothing was deployed there.
        Refused: root's rights are needed and cannot be had.
    """
    places = [facts.home_place] if user else [facts.system_place, facts.home_place]
    found = next((place for place in places if place.ours), None)
    if found is None:
        raise NotFound(
            f"no donor was deployed on {target}",
            why=f"there is none in {' or '.join(place.path for place in places)}",
            hint="a donor that was installed there by hand is ended there: ghostbox service uninstall donor",
        )
    return chosen(facts, target, user=found is facts.home_place, may_ask=may_ask)


def removal(place: Place, facts: Facts) -> tuple[str, ...]:
    """Return what undeploying changes, in order."""
    return (
        "end the pairing of this host with it, and forget it",
        "stop the memserver" + (", and remove ghostbox-donor.service" if place.unit else ""),
        f"remove {place.path}, {runtime_of(place, facts)}, and the link {link_of(place, facts)} if it leads there",
    )


def _text(version: Version) -> str:
    return ".".join(map(str, version))
