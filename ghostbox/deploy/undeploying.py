# SPDX-License-Identifier: MIT
"""Remove a deployed donor from its machine, with all that it has left there (``ghostbox donor undeploy``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ghostbox.deploy import donor_side, plan
from ghostbox.deploy.donor_side import Ask, DonorSide
from ghostbox.deploy.plan import Start
from ghostbox.donors import known, pairings
from ghostbox.paths import Paths
from ghostbox.session.progress import Progress
from ghostbox.system.remote import Remote


@dataclass(frozen=True)
class Undeployed:
    """Holds what was done."""

    target: str
    place: str
    donor: str
    changes: tuple[str, ...]
    removed: bool = False


def undeploy(
    target: str,
    paths: Paths,
    progress: Progress,
    *,
    user: bool,
    ssh_config: Path | None,
    ask: Ask | None,
    agree: Callable[[tuple[str, ...]], None],
    dry_run: bool = False,
) -> Undeployed:
    """Stop a deployed donor, remove it, and end this host's pairing with it.

    Args:
        target: ``[USER@]HOST``, as ssh takes it.
        paths: this host's directories.
        progress: receives the stages.
        user: look only into the login's home.
        ssh_config: a file instead of the user's ssh configuration.
        ask: asks the user for sudo's password; None: there is no terminal.
        agree: receives the changes before the first of them; raises if the user does not agree.
        dry_run: stop before the first change.

    Raises:
        NotFound: no donor was deployed there.
        Refused: hosts hold leases, or the rights cannot be had; nothing was changed.
        GhostboxError: a step failed.
    """
    with Remote(target, config=ssh_config, has_terminal=ask is not None) as remote:
        with progress.stage("look") as stage:
            facts = donor_side.look(remote)
            place, as_root = plan.removable(facts, target, user=user, may_ask=ask is not None)
            name = place.arguments[0] if place.arguments else ""
            stage.say(f"memserver '{name}' in {place.path}" if name else place.path)
        done = Undeployed(target, place.path, name, plan.removal(place, facts))
        if dry_run:
            return done
        agree(done.changes)
        side = donor_side.with_rights(remote, facts, place, as_root=as_root, ask=ask)
        with progress.stage("stop") as stage:
            if name:
                _stop(side, name, paths)
            stage.say("it runs no more")
        with progress.stage("remove") as stage:
            side.act("remove", "the installation was not removed")
            stage.say(f"{place.path} is gone")
    return replace(done, removed=True)


def _stop(side: DonorSide, name: str, paths: Paths) -> None:
    """Stop the memserver, and strike it out here. It need not be told: all that it knows of hosts is removed."""
    stopped = side.stop(name, Start.SERVICE if side.place.unit else Start.BACKGROUND)
    if not stopped.id:
        return
    pairings.drop(paths, [each for each in pairings.load(paths) if each.donor == stopped.id])
    for each in known.load(paths):
        if each.id == stopped.id:
            known.forget(paths, each.address)
