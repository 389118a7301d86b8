# SPDX-License-Identifier: MIT
"""Let donors, links and pagers fail as a seed says, under a process that checks every word that it reads.

    PYTHONPATH=.:tests python -m helpers.chaos --seed 7 --seconds 180

There are three donors and a spare, each in a namespace of its own, and two copies of everything. No event does what two
copies cannot survive: an event that may take a copy away waits until every extent has both. chaos_plan decides what
happens when, chaos_world how. A run succeeds if no word was wrong, no thread stood still for longer than a bound while
a copy of everything could be reached, every wait ended in time, the pool was healthy again at the end, and the counters
agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostbox.system import processes
from helpers.chaos_donors import Donors, chaos_donors
from helpers.chaos_plan import HARMLESS, Event, plan
from helpers.chaos_world import ACTIONS, Steps, Wait, World
from helpers.pager import Build, memory_client
from helpers.sanitized import COMPLAINTS, sanitized_build
from helpers.takeover import pager_line

THREADS = 8
MEMORY_MIB, EXPORT_MIB = 16, 24
STANDSTILL_S = 15.0
TICK_S = 0.05
CLIENT_LOG = "client"
LOOK_EVERY_S = 0.2
# While bits flip or a donor fails at random, only these events run: a copy that may be wrong does not count.
BESIDE_LIES = {"kill-pager", "hand-over", "set-cache", "look", "delay"}
LIES = {"flip", "errors", "rot"}


# A link that was cut until now may have lost a write that the pager does not know of: a copy may be missing.
NEED_CALM = {"kill", "rot", "flip", "errors"}
CALM_S = 2.5


class ChaosFailed(AssertionError):
    """Is raised if a run fails; the message has the end of its log."""


@dataclass
class Active:
    """Is a running event."""

    event: Event
    steps: Steps
    wait: Wait
    since: float


@dataclass
class Progress:
    """Holds when each thread was last seen to do something."""

    counts: list[int] = field(default_factory=lambda: [0] * THREADS)
    moved_at: list[float] = field(default_factory=lambda: [time.monotonic()] * THREADS)
    owed_since: float | None = None
    longest_s: float = 0.0


class Run:
    """Is one run: ``events`` happen to ``world`` for ``seconds``."""

    def __init__(self, world: World, events: list[Event], seconds: float, log: list[str]) -> None:
        self.world, self.left, self.seconds, self.log = world, list(events), seconds, log
        self.active: list[Active] = []
        self.done: Counter[str] = Counter()
        self.progress = Progress()
        self.started = time.monotonic()
        self.due = self.started
        self.looked_at = 0.0
        self.exposed = False
        self.away: frozenset[str] = frozenset()
        self.calm_since = self.started
        self.working = True
        self.blocked: Wait | None = None
        self.blocked_since = 0.0

    def happen(self) -> None:
        """Run all events for which there is time, to their ends."""
        while (self._in_time() and self.left) or self.active:
            self._tick()
            if self._in_time() and self.left and time.monotonic() >= self.due:
                self._begin_next()
        self.world.say(f"no more events; {len(self.left)} of the plan are left")
        self._until(self.world.wait("the pool to be healthy", self._all_well, 90))

    def _in_time(self) -> bool:
        return time.monotonic() - self.started < self.seconds

    def _all_well(self) -> bool:
        """Tell whether the pool is healthy; a donor that was slow may count as slow for a while."""
        self.world.look()
        return self.world.healed() and self.world.last.get("health", "ok") in ("ok", "degraded")

    def _until(self, wait: Wait) -> None:
        since = time.monotonic()
        while not wait.condition():
            self._tick()
            self._check(wait, since)

    def _tick(self) -> None:
        time.sleep(TICK_S)
        self._watch()
        for active in list(self.active):
            # Without a pager no state can be read; only its return is waited for.
            if self.world.pager_down and active.event.kind not in ("kill-pager", "hand-over"):
                active.since = max(active.since, time.monotonic() - 1)
                if active.wait.what != "time to pass":
                    continue
            if active.wait.condition():
                self._step(active)
            else:
                self._check(active.wait, active.since)

    def _step(self, active: Active) -> None:
        wait = next(active.steps, None)
        if wait is None:
            self.active.remove(active)
            self.calm_since = time.monotonic()
            self.done[active.event.kind] += 1
            self.world.say(f"end {active.event}")
        else:
            active.wait, active.since = wait, time.monotonic()

    def _check(self, wait: Wait, since: float) -> None:
        if time.monotonic() - since > wait.timeout_s:
            raise ChaosFailed(f"waited {wait.timeout_s:.0f} s for {wait.what}")

    def _begin_next(self) -> None:
        event = self.left[0]
        if not self._may_begin(event):
            if self.blocked is None:
                self.blocked = self.world.wait(f"leave to begin {event}", lambda: False, 90)
                self.blocked_since = time.monotonic()
            self._check(self.blocked, self.blocked_since)
            return
        self.blocked = None
        self.left.pop(0)
        self.due = time.monotonic() + (self.left[0].gap_s if self.left else 0)
        self.world.say(f"begin {event}")
        active = Active(event, ACTIONS[event.kind](self.world, event), Wait("", lambda: True, 0), time.monotonic())
        self.active.append(active)
        self._step(active)

    def _may_begin(self, event: Event) -> bool:
        kinds = self._kinds()
        if self.world.pager_down:
            return False
        if event.kind in HARMLESS:
            return event.kind not in kinds - {"cut", "cut-far", "stop"} and (
                not kinds & LIES or event.kind in BESIDE_LIES
            )
        if kinds or (event.kind in NEED_CALM and time.monotonic() - self.calm_since < CALM_S):
            return False
        self.world.look()
        return self.world.healed()

    def _watch(self) -> None:
        """Look at the pager and at the threads; none may stand still without a reason."""
        world, now = self.world, time.monotonic()
        if not world.pager_down and world.line.process.poll() is not None:
            raise ChaosFailed(f"the pager ended with status {world.line.process.returncode}")
        if now - self.looked_at < LOOK_EVERY_S:
            return
        self.looked_at = now
        if world.client.process.poll() is not None:
            raise ChaosFailed(f"the client ended with status {world.client.process.returncode}")
        self._restart_filtered()
        self._note_exposure()
        if not world.pager_down:
            world.look()
        self._note_progress(now)

    def _restart_filtered(self) -> None:
        """Start the filtered donor again if it ended by itself."""
        filtered = self.world.donors.filtered
        if filtered.process.poll() is not None and "crash" not in self._kinds():
            self.world.say(f"filtered ended by itself, status {filtered.process.returncode}")
            filtered.start()

    def _kinds(self) -> set[str]:
        return {active.event.kind for active in self.active}

    def _note_exposure(self) -> None:
        """Note when waiting is allowed: two donors are down, or one before all copies of another's were made anew."""
        away = frozenset(name for name in self.world.members if not self.world.donors[name].reachable)
        if not away:
            self.exposed = False
        elif away != self.away and (len(away) > 1 or not self.world.complete()):
            self.exposed = True
        self.away = away

    def _note_progress(self, now: float) -> None:
        progress = self.progress
        if self.exposed or self.world.pager_down or not self.working:
            progress.owed_since = None
        elif progress.owed_since is None:
            progress.owed_since = now
        steps = self.world.client.command("stress-progress", threads=THREADS)
        counts = [int(steps[f"thread_{number}"]) for number in range(THREADS)]
        for number, (count, before) in enumerate(zip(counts, progress.counts, strict=True)):
            if count != before:
                progress.moved_at[number] = now
        progress.counts = counts
        if progress.owed_since is not None:
            still_s = now - max(min(progress.moved_at), progress.owed_since)
            progress.longest_s = max(progress.longest_s, still_s)
            if still_s > STANDSTILL_S * self.world.patience:
                raise ChaosFailed(f"a thread stands still for {still_s:.1f} s: {counts}")


def _check_counters(world: World) -> None:
    """Check that all pages are in one state, none is poisoned, and every extent has its copies and no leaked slot."""
    status = world.look()
    pages = status["pages"]
    assert pages["poisoned"] == 0, pages
    assert pages["present"] * 4096 <= status["cache_bytes"], pages
    assert status["surprises"] == {"foreign_pages": 0, "vanished_pages": 0}, status["surprises"]
    if world.replicas == 1:
        return
    pool = status["pool"]
    used = sum(donor["used_slots"] for donor in status["donors"])
    current = sum(donor["copies"]["current"] for donor in status["donors"])
    assert used == current == pool["extents"] * world.replicas, (pool, status["donors"])
    assert pool["lost_pages"] == 0, pool


def _check_complaints(world: World) -> None:
    """Check that no sanitizer of the pager, the shim or the client reports anything."""
    said = world.line.log() + (world.line.place / CLIENT_LOG).read_text()
    first = min((said.find(word) for word in COMPLAINTS if word in said), default=None)
    assert first is None, said[max(0, first - 200) : first + 6000]


def _check_every_copy(world: World, run: Run, names: list[str]) -> None:
    """Check that every word can be read, whichever donor is down."""
    errors = world.checksum_errors()
    run.working = False
    for name in names:
        run._until(world.pause(CALM_S))
        run._until(world.wait("the pool to be healthy", run._all_well, 90))
        world.donors[name].cut(far=True)
        answer = world.client.command(
            "stress", threads=THREADS, seconds=0, fresh=0, write=0, timeout_s=60 * world.patience
        )
        assert answer["words_verified"] >= MEMORY_MIB << 17
        world.donors[name].heal(far=True)
        world.say(f"every word is right without {name}")
    run._until(world.pause(CALM_S))
    run._until(world.wait("the pool to be healthy", run._all_well, 90))
    assert world.checksum_errors() == errors


def _failure(world: World, log: list[str], what: str) -> str:
    """Return the error with all that helps to understand it."""
    with contextlib.suppress(processes.ControlError):
        world.look()
    status = {key: world.last.get(key) for key in ("health", "pool", "pages", "donors")}
    for donor in status["donors"] or []:
        donor.pop("latency", None)
    return "\n".join([what, *log[-40:], "pager:", *world.line.log().splitlines()[-40:], json.dumps(status, indent=1)])


@dataclass(frozen=True)
class Setting:
    """Holds the kind of run; ``build`` are the programs (None: the installed ones).

    ``check_copies``: at the end, read every word again with each donor down in turn. ``tls``: use TLS to the donors.
    """

    seed: int
    seconds: float
    replicas: int = 2
    patience: float = 1.0
    build: Build | None = None
    keep: Path | None = None
    without: Collection[str] = ()
    check_copies: bool = True
    tls: bool = False


def _pager_options(setting: Setting) -> dict[str, str]:
    if setting.replicas == 1:
        return {"readahead": "64K", "extent": "1M"}
    return {
        "readahead": "64K",
        "extent": "1M",
        "replicas": str(setting.replicas),
        "pool": f"{MEMORY_MIB}M",
        "rebuild-after": "2",
    }


@contextlib.contextmanager
def _made_world(setting: Setting, donors: Donors, log: list[str]) -> Iterator[World]:
    started = time.monotonic()

    def say(text: str) -> None:
        log.append(f"{time.monotonic() - started:8.2f} {text}")
        if setting.keep:
            with (setting.keep / f"events-{setting.seed}").open("a") as stream:
                stream.write(log[-1] + "\n")

    members = ["plain", "relayed", "filtered"]
    uris = [donors[name].uri for name in members]
    with (
        pager_line(uris, cache="2M", build=setting.build, **_pager_options(setting)) as line,
        memory_client(f"{MEMORY_MIB}M", line.listen, build=setting.build, stderr=line.place / CLIENT_LOG) as client,
    ):
        world = World(line, client, donors, setting.replicas, setting.patience, say, set(members))
        world.look()
        try:
            yield world
        finally:
            if setting.keep:
                (setting.keep / f"pager-{setting.seed}").write_text(line.log())


def run_chaos(setting: Setting) -> dict[str, Any]:
    """Run a seed and return how often each kind of event happened.

    Raises:
        ChaosFailed: the run failed.
    """
    log: list[str] = []
    events = plan(setting.seed, setting.seconds, copies=setting.replicas > 1, without=setting.without)
    with chaos_donors(EXPORT_MIB, tls=setting.tls) as donors, _made_world(setting, donors, log) as world:
        run = Run(world, events, setting.seconds, log)
        world.client.start("stress", threads=THREADS, seconds=100_000, seed=setting.seed, discards=100)
        try:
            run.happen()
            world.client.command("stress-stop")
            answer = world.client.result("stress", timeout_s=90 * setting.patience)
            assert answer["ok"], answer
            _check_counters(world)
            if setting.replicas > 1 and setting.check_copies:
                _check_every_copy(world, run, sorted(world.members)[: 1 if setting.seconds < 60 else None])
                _check_counters(world)
            _check_complaints(world)
        except Exception as err:
            raise ChaosFailed(_failure(world, log, f"seed {setting.seed}: {err}")) from err
        return {
            "seed": setting.seed,
            "seconds": setting.seconds,
            "events": dict(run.done),
            "operations": answer["operations"],
            "words_verified": answer["words_verified"],
            "longest_standstill_s": round(run.progress.longest_s, 2),
            "checksum_errors": world.checksum_errors(),
            "flips": donors.relayed.harm("counts")["flip"],
        }


def main() -> None:
    """Run seeds one after the other, until one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--without", default="", help="kinds of events to leave out, with commas")
    parser.add_argument("--only", default="", help="kinds of events to keep, with commas")
    parser.add_argument("--sanitizer", choices=["asan", "tsan"])
    parser.add_argument("--tls", action="store_true", help="reach the donors over TLS")
    parser.add_argument("--keep", type=Path, help="directory for the logs")
    parser.add_argument("--show", action="store_true", help="only print the plan")
    args = parser.parse_args()
    without = set(filter(None, args.without.split(",")))
    without |= ACTIONS.keys() - set(args.only.split(",")) if args.only else set()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seed, args.seed + args.seeds):
        if args.show:
            print(*plan(seed, args.seconds, copies=args.replicas > 1, without=without), sep="\n")
            continue
        build = None
        if args.sanitizer:
            build = sanitized_build(args.sanitizer)
        patience = 4.0 if build else 1.0
        setting = Setting(seed, args.seconds, args.replicas, patience, build, args.keep, without, tls=args.tls)
        print(json.dumps(run_chaos(setting)), flush=True)


if __name__ == "__main__":
    main()
