# SPDX-License-Identifier: MIT
"""Hold what a chaos run acts on: the pager, the process in place of QEMU, the donors; and their known state.

Each event is a generator: it does something, yields a condition to wait for, and continues when the condition is true.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ghostbox.system import processes
from helpers.chaos_donors import Donors
from helpers.chaos_plan import Event
from helpers.pager import MemoryClient
from helpers.takeover import PagerLine

Condition = Callable[[], bool]
Steps = Iterator["Wait"]
CACHES = (1 << 20, 2 << 20, 3 << 20)
# When a pager ends, this many answers may be on their way to it: one for each waiting thread, and some for readahead.
ON_THEIR_WAY = 16


@dataclass(frozen=True)
class Wait:
    """Describes what an event waits for, in words for the message, and for how long at most."""

    what: str
    condition: Condition
    timeout_s: float


@dataclass
class World:
    """Holds the parts. ``patience`` scales every deadline, since a sanitized pager is slower."""

    line: PagerLine
    client: MemoryClient
    donors: Donors
    replicas: int
    patience: float
    say: Callable[[str], None]
    members: set[str] = field(default_factory=set)
    pager_down: bool = False
    last: dict[str, Any] = field(default_factory=dict)
    hedges_before: int = 0
    exchanges: int = 0

    def look(self) -> dict[str, Any]:
        """Ask the pager for its status, and keep the answer."""
        self.last = self.line.status()
        return self.last

    def donor_status(self, name: str) -> dict[str, Any]:
        """Return the pager's last status of a donor: its newest entry, if the donor came back."""
        uri = self.donors[name].uri
        found = [entry for entry in self.last["donors"] if entry["uri"] == uri]
        return dict(found[-1]) if found else {"state": "removed"}

    def checksum_errors(self) -> int:
        """Return the checksum errors of all pagers so far: each pager continues the count of the one before."""
        return sum(int(donor["checksum_errors"]) for donor in self.last["donors"])

    def hedges(self) -> int:
        """Return the hedges of this pager and, as far as they were seen, of those before."""
        return self.hedges_before + int(self.last["hedges"]["sent"])

    def pager_ends(self) -> None:
        """Note that the pager ends now."""
        self.look()
        self.pager_down = True
        self.hedges_before = self.hedges()
        self.exchanges += 1

    def complete(self) -> bool:
        """Tell whether every extent had all its copies in the pager's last status."""
        if self.replicas == 1:
            return False
        pool = self.last["pool"]
        return not (pool["missing_copies"] or pool["stale_copies"] or pool["filling_copies"])

    def healed(self) -> bool:
        """Tell whether all copies were complete, and every member answered."""
        if any(not self.donors[name].reachable for name in self.members):
            return False
        if self.replicas == 1:
            return all(self.donor_status(name)["state"] == "up" for name in self.members)
        return self.complete() and all(self.donor_status(name)["state"] in ("up", "slow") for name in self.members)

    def wait(self, what: str, condition: Condition, timeout_s: float = 45.0) -> Wait:
        """Return a wait with a deadline."""
        return Wait(what, condition, timeout_s * self.patience)

    def pause(self, seconds: float) -> Wait:
        """Return a wait for time to pass, for an event that lasts that long."""
        ends = time.monotonic() + seconds
        return Wait("time to pass", lambda: time.monotonic() >= ends, seconds + 60)

    def holds_nothing(self, name: str) -> bool:
        """Tell whether a donor holds no copy any more."""
        return int(self.donor_status(name)["used_slots"]) == 0

    def accepted(self, cmd: str, name: str) -> bool:
        """Tell whether the pager accepted a command about a donor; it may refuse for now."""
        try:
            self.line.command(cmd, uri=self.donors[name].uri)
        except processes.ControlError as err:
            self.say(f"  {cmd} {name}: {err.code}: {err}")
            return False
        return True

    def remove(self, name: str) -> Steps:
        """Remove a donor that will soon hold nothing."""
        yield self.wait(f"{name} to hold nothing", lambda: self.holds_nothing(name))
        yield self.wait(f"remove-donor {name}", lambda: self.accepted("remove-donor", name))
        self.members.discard(name)

    def add(self, name: str) -> Steps:
        """Add a donor."""
        yield self.wait(f"add-donor {name}", lambda: self.accepted("add-donor", name))
        self.members.add(name)


def _cut(world: World, event: Event) -> Steps:
    far = event.kind == "cut-far"
    world.donors[event.donor].cut(far=far)
    yield world.pause(event.lasts_s)
    world.donors[event.donor].heal(far=far)


def _stop(world: World, event: Event) -> Steps:
    donor = world.donors[event.donor]
    donor.stop()
    yield world.pause(event.lasts_s)
    donor.resume()


def _delay(world: World, event: Event) -> Steps:
    world.donors.relayed.harm("delay", str(event.amount))
    yield world.pause(event.lasts_s)
    world.donors.relayed.harm("delay", "0")


def _break(world: World, event: Event) -> Steps:
    world.donors.relayed.harm("break")
    return
    yield


def _garble(world: World, event: Event) -> Steps:
    world.donors.relayed.harm("garble", "2")
    yield world.pause(event.lasts_s)
    world.donors.relayed.harm("garble", "0")


def _rate(world: World, event: Event) -> Steps:
    world.donors.filtered.rate(f"{event.amount + 10}M")
    yield world.pause(event.lasts_s)
    world.donors.filtered.rate("10G")


def _kill_pager(world: World, event: Event) -> Steps:
    world.pager_ends()
    world.line.kill()
    yield world.pause(event.lasts_s)
    yield from _resume(world)


def _hand_over(world: World, event: Event) -> Steps:
    world.pager_ends()
    world.line.command("hand-over")
    yield world.wait("the pager's end", lambda: world.line.process.poll() is not None)
    yield from _resume(world)


def _resume(world: World) -> Steps:
    world.line.resume()
    yield world.wait("the client's return", lambda: world.line.served(world.client))
    world.look()
    world.pager_down = False


def _set_cache(world: World, event: Event) -> Steps:
    world.line.command("set-cache", cache_bytes=CACHES[event.amount % len(CACHES)])
    return
    yield


def _look(world: World, event: Event) -> Steps:
    regions = world.line.command("page-map", cells=event.amount)["regions"]
    kinds = ("absent", "remote", "resident", "inactive", "moving", "poisoned")
    for region in regions:
        counted = sum(sum(region[kind]) for kind in kinds)
        assert counted == region["length_bytes"] // 4096, region
    return
    yield


def _flip(world: World, event: Event) -> Steps:
    """Flip bits; the pager must find each.

    It does not look at some answers: of a hedge that lost, of a heartbeat, or on their way to a pager that ends.
    """
    relayed = world.donors.relayed
    world.look()
    hedges, exchanges = world.hedges(), world.exchanges
    before, found_before = relayed.harm("flip", str(event.amount))["flip"], world.checksum_errors()
    yield world.pause(event.lasts_s)
    flips = relayed.harm("flip", "0")["flip"] - before
    allowed = 3 * (int(event.lasts_s) + 2)

    def found() -> bool:
        unseen = world.hedges() - hedges + allowed + (world.exchanges - exchanges) * ON_THEIR_WAY
        return world.checksum_errors() - found_before + unseen >= flips

    yield world.wait("flips to be found", found, 20)
    world.say(f"  {flips} flips, {world.checksum_errors() - found_before} more checksum errors")


def _errors(world: World, event: Event) -> Steps:
    world.donors.filtered.errors(True)
    yield world.pause(event.lasts_s)
    world.donors.filtered.errors(False)


def _crash(world: World, event: Event) -> Steps:
    """Let a server die and come back with its memory."""
    world.donors.filtered.kill()
    yield world.pause(event.lasts_s)
    world.donors.filtered.start()


def _kill(world: World, event: Event) -> Steps:
    donor = world.donors[event.donor]
    donor.kill()
    yield world.pause(event.lasts_s)
    donor.start()
    yield world.wait(f"{donor.name} to be seen as another", lambda: _seen_as_another(world, donor.name))
    yield from world.remove(donor.name)
    yield from world.add(donor.name)


def _seen_as_another(world: World, name: str) -> bool:
    """Tell whether the loss was noticed; a donor that was emptied before it came back has lost nothing."""
    return world.donor_status(name)["state"] == "lost" or world.holds_nothing(name)


def _drain(world: World, event: Event) -> Steps:
    if event.donor not in world.members:
        return
    yield world.wait(f"drain-donor {event.donor}", lambda: world.accepted("drain-donor", event.donor))
    yield from world.remove(event.donor)
    yield world.pause(event.lasts_s)
    yield from world.add(event.donor)


def _rot(world: World, event: Event) -> Steps:
    """Change bits in a donor's memory. Then let the donor leave, so that unread bits do not cause errors later."""
    world.donors[event.donor].rot(event.amount * 10, event.number)
    yield world.pause(event.lasts_s)
    yield from _drain(world, event)


def _spare(world: World, event: Event) -> Steps:
    if "spare" in world.members:
        yield world.wait("drain-donor spare", lambda: world.accepted("drain-donor", "spare"))
        yield from world.remove("spare")
    else:
        yield from world.add("spare")


ACTIONS: dict[str, Callable[[World, Event], Steps]] = {
    "cut": _cut,
    "cut-far": _cut,
    "stop": _stop,
    "delay": _delay,
    "break": _break,
    "garble": _garble,
    "rate": _rate,
    "kill-pager": _kill_pager,
    "hand-over": _hand_over,
    "set-cache": _set_cache,
    "look": _look,
    "flip": _flip,
    "errors": _errors,
    "crash": _crash,
    "kill": _kill,
    "drain": _drain,
    "rot": _rot,
    "spare": _spare,
}
