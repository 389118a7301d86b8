# SPDX-License-Identifier: MIT
"""Start the VMs that have ``vm.autostart``. Donors, networks and libvirt may come up after this program."""

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
    """Passes progress on, and each note once, however often a start is tried."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said: set[str] = set()
        self.stage = progress.stage
        self.seconds = progress.seconds

    def note(self, text: str) -> None:
        """Pass a line on if it was not passed on before."""
        if text not in self._said:
            self._said.add(text)
            self._progress.note(text)


@dataclass(frozen=True)
class Started:
    """Holds the result for one VM: if the VM does not run, ``state`` is None and ``error`` says why."""

    name: str
    state: str | None
    error: str | None = None


def run(
    load_config: Callable[[str], Config], paths: Paths, progress: Progress, *, timeout_s: float
) -> tuple[Started, ...]:
    """Start every VM that has ``vm.autostart``; try those that fail again until ``timeout_s`` is over.

    Args:
        load_config: returns the configuration for the VM of a name.
        paths: where VMs live.
        progress: receives stages and notes.
        timeout_s: the time for all VMs together.
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
            done[name] = Started(name, None, _reason(err))
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
    """Start a VM; return None if the start is to be tried again. The reason is shown when it changes."""
    try:
        return Started(name, str(up(load_config(name), paths, progress, wait=False).state))
    except UsageError as err:  # trying again does not mend a wrong configuration
        return Started(name, None, _reason(err))
    except GhostboxError as err:
        if _reason(err) != waiting[name]:
            progress.note(f"VM '{name}' is tried again: {_reason(err)}")
        waiting[name] = _reason(err)
    return None


def _reason(err: GhostboxError) -> str:
    return f"{err.message}: {err.why}" if err.why else err.message
