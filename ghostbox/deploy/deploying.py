# SPDX-License-Identifier: MIT
"""Deploy a donor (``ghostbox donor deploy``): look at the machine, install, start, pair, and ask the donor over TLS."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from ghostbox import __version__
from ghostbox.deploy import bundle, donor_side, plan
from ghostbox.deploy.bundle import Bundle
from ghostbox.deploy.donor_side import Ask, DonorSide
from ghostbox.deploy.facts import Facts
from ghostbox.deploy.plan import Plan, Start
from ghostbox.donors import known, pairings, token, trust
from ghostbox.donors.address import parse_address
from ghostbox.donors.client import DonorClient, DonorStatus
from ghostbox.donors.models import NewTokenFields
from ghostbox.donors.pairings import Pairing
from ghostbox.errors import DonorError, GhostboxError, NoAnswer
from ghostbox.memserver.deployed import Shown
from ghostbox.memserver.opening import name_of
from ghostbox.paths import Paths
from ghostbox.session import pairing
from ghostbox.session.progress import Progress, Stage
from ghostbox.system.remote import Remote
from ghostbox.units import format_bytes

_TOKEN = TypeAdapter(NewTokenFields)
_NOTHING: TypeAdapter[object] = TypeAdapter(object)
_TIMES = (15.0, 5.0)
_EVERYWHERE = ("--bind", "0.0.0.0")  # noqa: S104 - a donor serves its network: paired hosts alone, over TLS


@dataclass(frozen=True)
class Wanted:
    """Holds what the user wants.

    ``options`` are the memserver's, None: as they were; ``name`` is the memserver's, None: as it was, or its machine's.
    ``user``: into the login's home, without sudo. ``ssh_config`` is a file instead of the user's ssh configuration.
    """

    target: str
    options: tuple[str, ...] | None = None
    name: str | None = None
    user: bool = False
    ssh_config: Path | None = None


@dataclass(frozen=True)
class Deployed:
    """Holds what was done. ``address`` is empty after a dry run; ``paired``: they were not paired before."""

    target: str
    donor: str
    place: str
    version: str
    start: Start
    changes: tuple[str, ...]
    address: str = ""
    size_bytes: int = 0
    paired: bool = False
    notes: tuple[str, ...] = ()


def deploy(
    wanted: Wanted,
    paths: Paths,
    progress: Progress,
    *,
    ask: Ask | None,
    show: Callable[[tuple[str, ...]], None],
    dry_run: bool = False,
) -> Deployed:
    """Bring a complete donor to a machine, start it, pair with it, and ask it over TLS.

    Args:
        wanted: what and where.
        paths: this host's directories.
        progress: receives the stages.
        ask: asks the user for sudo's password; None: there is no terminal.
        show: receives the changes before the first of them is made.
        dry_run: stop before the first change.

    Raises:
        Refused: the machine cannot be a donor, or not with these rights; nothing was changed there.
        GhostboxError: a step failed there; the machine is as it was before.
        NoAnswer: the donor runs, and this host does not reach it.
    """
    with Remote(wanted.target, config=wanted.ssh_config, has_terminal=ask is not None) as remote:
        with progress.stage("look") as stage:
            facts = donor_side.look(remote)
            plan.check_machine(facts, wanted.target, bundle.machine())
            place, as_root = plan.chosen(facts, wanted.target, user=wanted.user, may_ask=ask is not None)
            python = ".".join(map(str, (facts.python or ())[:2]))
            stage.say(f"{facts.host}: {facts.libc}, Python {python}")
        with progress.stage("bundle") as stage:
            made = bundle.make(python, paths)
            stage.say(f"{made.needs.version}, {format_bytes(made.needs.packed_bytes)}")
        name, options = _named(wanted, facts, place.arguments)
        found = plan.make(facts, wanted.target, made.needs, place, as_root=as_root, name=name, arguments=options)
        show(found.changes)
        done = Deployed(wanted.target, name, place.path, found.version, found.start, found.changes)
        if dry_run:
            return done
        side = donor_side.with_rights(remote, facts, place, as_root=as_root, ask=ask)
        _install(side, found, made, progress)
        shown = _start(side, found, progress)
        status, new = _met(side, found, paths, progress)
        side.act("tidy", "old versions were not removed")
        notes = shown.notes
    return replace(done, address=status.address, size_bytes=status.size_bytes, paired=new, notes=notes)


def _named(wanted: Wanted, facts: Facts, former: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the memserver's name and options: as wanted, else as they were; it listens on all addresses by default."""
    name = wanted.name or (former[0] if former else name_of(facts.host))
    if wanted.options is None and former:
        return name, former[1:]
    options = wanted.options or ()
    has_bind = any(word == "--bind" or word.startswith("--bind=") for word in options)
    return name, options if has_bind else (*options, *_EVERYWHERE)


def _install(side: DonorSide, found: Plan, made: Bundle, progress: Progress) -> None:
    if found.is_there:
        return
    with progress.stage("copy") as stage:
        side.act(
            "install",
            "the copy was not finished",
            _counted(made, stage),
            version=found.version,
            members=made.members,
        )
        stage.say(f"{format_bytes(made.needs.packed_bytes)} copied, and tried there")


def _counted(made: Bundle, stage: Stage) -> Iterator[bytes]:
    n_sent = 0
    for part in made.parts():
        yield part
        n_sent += len(part)
        stage.say(f"{format_bytes(n_sent)} of {format_bytes(made.needs.packed_bytes)}")


def _start(side: DonorSide, found: Plan, progress: Progress) -> Shown:
    """Let the machine use the version and start it; if it does not start, all is as it was before."""
    with progress.stage("start") as stage:
        _switch(side, found.version, (found.name, *found.arguments))
        try:
            shown = side.start(found.name, found.arguments, found.start)
        except GhostboxError as err:
            stage.say("it does not start: back to what was before")
            try:
                _go_back(side, found)
            except GhostboxError as other:
                why = "\n".join(filter(None, (err.why, f"and what was before did not come back: {other.message}")))
                raise GhostboxError(err.message, why=why, hint=err.hint) from err
            raise
        stage.say(f"memserver '{shown.name}' {shown.version} at {shown.address}")
        return shown


def _switch(side: DonorSide, version: str, arguments: tuple[str, ...]) -> None:
    side.act("switch", "the version was not switched", version=version, arguments=arguments)


def _go_back(side: DonorSide, found: Plan) -> None:
    """Use the former version with the former arguments again; without one, remove all."""
    former = side.place
    if former.current in former.versions and former.arguments:
        _switch(side, former.current, former.arguments)
        side.start(former.arguments[0], former.arguments[1:], found.start)
        return
    side.stop(found.name, found.start)
    side.act("remove", "the installation was not removed")


def _met(side: DonorSide, found: Plan, paths: Paths, progress: Progress) -> tuple[DonorStatus, bool]:
    """Pair with the donor unless this host is, and ask it over TLS; return its answer, and whether they are new."""
    target = side.remote.target
    with progress.stage("pair") as stage:
        words = ("token", "create", "--name", found.name)
        made = side.command(_TOKEN, *words, doing="it made no token")
        paired = _paired_before(token.parse(made.token), paths)
        try:
            if paired is not None:
                side.command(
                    _NOTHING, "token", "revoke", made.id, "--name", found.name, doing="a token was not revoked"
                )
                stage.say("they are paired already")
            else:
                made_now = pairing.pair(token.parse(made.token), paths)
                stage.say(f"with donor '{made_now.name}'")
        except NoAnswer as err:
            raise _unreachable(target, found.name, err) from err
    with progress.stage("verify") as stage:
        try:
            status = _asked(paired or made_now)
        except NoAnswer as err:
            raise _unreachable(target, found.name, err) from err
        known.note(paths, status, status.address)
        stage.say(f"it answers at {status.address}, and lends {format_bytes(status.size_bytes)}")
    return status, paired is None


def _paired_before(made: token.Token, paths: Paths) -> Pairing | None:
    """Return this host's pairing with the donor of a token, if the donor still serves it."""
    former = next((each for each in pairings.load(paths) if each.fingerprint == made.fingerprint.hex()), None)
    if former is None:
        return None
    try:
        _asked(former)
    except DonorError:
        return None
    return former


def _asked(paired: Pairing) -> DonorStatus:
    """Return the donor's answer over TLS; its data port takes connections, too.

    Raises:
        NoAnswer: it does not answer, or has another version.
    """
    address = paired.addresses[0]
    times = {"timeout_s": _TIMES[0], "connect_timeout_s": _TIMES[1]}
    with DonorClient(address, channel=trust.to_paired(paired), **times) as client:
        status = client.status()
    if status.version != __version__:
        raise NoAnswer(f"donor {address} is of version {status.version}, and {__version__} was deployed")
    place = parse_address(address)
    try:
        socket.create_connection((place.host, status.nbd_port), timeout=_TIMES[1]).close()
    except OSError as err:
        raise NoAnswer(f"donor {address} does not take connections on port {status.nbd_port}", why=str(err)) from err
    return status


def _unreachable(target: str, name: str, err: NoAnswer) -> NoAnswer:
    return NoAnswer(
        f"memserver '{name}' runs on {target}, and this host does not reach it: {err.message}",
        why=err.why,
        hint="let its ports through there (TCP 10809 and 10810, if --port and --control-port say no other);"
        f" then again: ghostbox donor deploy {target}",
    )
