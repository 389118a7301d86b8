# SPDX-License-Identifier: MIT
"""Starts the VMs that are to be started with the machine. Donors, networks and libvirt may come later than we do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ghostbox.config import Config
from ghostbox.errors import GhostboxError, UsageError
from ghostbox.paths import Paths
from ghostbox.session import definition
from ghostbox.session.progress import Progress
from ghostbox.session.record import names
from ghostbox.session.up import up

_RETRY_S = 3.0


class _Once:
    """Tells what happens as `Progress` does, and each remark once, however often a start is tried."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said: set[str] = set()
        self.stage = progress.stage
        self.seconds = progress.seconds

    def note(self, text: str) -> None:
        """Pass a line on, if it is new."""
        if text not in self._said:
            self._said.add(text)
            self._progress.note(text)


@dataclass(frozen=True)
class Started:
    """What became of one VM: ``state`` is None and ``error`` says why if it does not run."""

    name: str
    state: str | None
    error: str | None = None


def run(
    load_config: Callable[[str], Config], paths: Paths, progress: Progress, *, timeout_s: float
) -> tuple[Started, ...]:
    """Start every VM with ``vm.autostart``; one that cannot be started is tried again until ``timeout_s`` is over.

    Args:
        load_config: returns the configuration for the VM of a name.
        paths: where VMs live.
        progress: is told what happens.
        timeout_s: for all of them together.
    """
    done: dict[str, Started] = {}
    waiting: dict[str, str] = {}
    deadline = time.monotonic() + timeout_s
    progress = _Once(progress)
    for name in names(paths):
        try:
            if definition.defined(name, paths, load_config(name)).vm.autostart:
                waiting[name] = ""
        except GhostboxError as err:
            done[name] = Started(name, None, _said(err))
    while waiting:
        for name in list(waiting):
            found = _try(name, waiting, load_config, paths, progress)
            if found is not None:
                done[name] = found
                del waiting[name]
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(_RETRY_S)
    done.update({name: Started(name, None, error) for name, error in waiting.items()})
    return tuple(done[name] for name in sorted(done))


def _try(
    name: str, waiting: dict[str, str], load_config: Callable[[str], Config], paths: Paths, progress: Progress
) -> Started | None:
    """Start a VM; None if it is to be tried again. What is in the way is said once."""
    try:
        return Started(name, str(up(load_config(name), paths, progress, wait=False).state))
    except UsageError as err:  # no time mends that
        return Started(name, None, _said(err))
    except GhostboxError as err:
        if _said(err) != waiting[name]:
            progress.note(f"VM '{name}' is tried again: {_said(err)}")
        waiting[name] = _said(err)
    return None


def _said(err: GhostboxError) -> str:
    return f"{err.message}: {err.why}" if err.why else err.message
