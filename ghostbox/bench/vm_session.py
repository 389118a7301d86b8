# SPDX-License-Identifier: MIT
"""Make VMs and donors that live as long as the benchmark; the next run removes what a killed run left."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ghostbox import session
from ghostbox.demo import lenders
from ghostbox.errors import DeadlineExceeded, GhostboxError, GuestError, Interrupted, NotFound
from ghostbox.paths import Paths
from ghostbox.session.signals import Interrupts
from ghostbox.system import processes

_log = logging.getLogger(__name__)
_PREFIX = "bench"

Say = Callable[[str], None]


def own_name(what: str) -> str:
    """Return the name of a VM or donor of this run."""
    return f"{_PREFIX}-{os.getpid()}-{what}"


def is_left(name: str) -> bool:
    """Tell whether a run that has ended made the VM or donor of that name."""
    found = re.fullmatch(rf"{_PREFIX}-(\d+)-\w+", name)
    return found is not None and not processes.pid_alive(int(found[1]))


def sweep(paths: Paths) -> None:
    """Remove the VMs and donors of a run that was killed.

    Raises:
        KeyboardInterrupt: a signal came meanwhile; they are removed.
    """
    with shielded() as interrupts:
        for name in session.names(paths):
            if is_left(name):
                _remove(name, paths)
        lenders.stop([each for each in lenders.running(paths) if is_left(each.name)], paths)
    if interrupts.pending:
        raise KeyboardInterrupt


def remove(name: str, paths: Paths) -> None:
    """Remove a VM in whatever state, whatever signal comes."""
    with shielded():
        _remove(name, paths)


def _remove(name: str, paths: Paths) -> None:
    try:
        session.delete(name, paths, Told(name, _log.debug), force=True)
    except NotFound:
        return
    except GhostboxError as err:
        _log.warning("VM '%s' could not be removed: %s", name, err.message)


@contextlib.contextmanager
def lent(
    n_lenders: int, size_bytes: int, paths: Paths, place: lenders.Place = lenders.LOOPBACK
) -> Iterator[list[lenders.Lender]]:
    """Run donors that together lend ``size_bytes``, by default on loopback."""
    names = tuple(own_name(str(number + 1)) for number in range(n_lenders))
    try:
        yield lenders.start(names, size_bytes // n_lenders, paths, place)
    finally:
        with shielded():
            lenders.stop([each for each in lenders.running(paths) if each.name in names], paths)


@contextlib.contextmanager
def shielded() -> Iterator[Interrupts]:
    """Run the block to its end, whatever signal comes; yield what tells whether one came."""
    interrupts = Interrupts()
    with interrupts.watched(), interrupts.shielded():
        yield interrupts


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Drop the hint of a session's errors that the VM runs on: this VM is removed."""
    try:
        yield
    except Interrupted as err:
        raise KeyboardInterrupt from err
    except (GuestError, DeadlineExceeded) as err:
        raise type(err)(err.message, why=err.why) from err


class Told:
    """Shows a session's progress in the benchmark's one line."""

    def __init__(self, name: str, say: Say) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._say = name, say

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[ToldStage]:
        """Show the stage."""
        self._say(f"{self._name}: {name}")
        yield ToldStage(lambda text: self._say(f"{self._name}: {name}: {text}"))

    def note(self, text: str) -> None:
        """Log a line between two stages."""
        _log.debug("%s: %s", self._name, text)


@dataclass(frozen=True)
class ToldStage:
    """Is a stage of `Told`."""

    say: Say
