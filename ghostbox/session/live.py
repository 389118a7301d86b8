# SPDX-License-Identifier: MIT
"""Apply a change of a VM's definition: at once where the VM can take it now, otherwise at its next start.

The pager and the supervisor of a running VM can take some keys. Each step can be undone, and is undone if a later step
fails; the definition is written last.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ghostbox import pager
from ghostbox.errors import GhostboxError
from ghostbox.paths import Paths
from ghostbox.plan import plan
from ghostbox.plan.plan import PagerPlan, Virt
from ghostbox.session import definition, takeover
from ghostbox.session.definition import Change, Defined
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState

_log = logging.getLogger(__name__)
_READ_BY_COMMANDS = frozenset({"vm.boot_timeout", "vm.autostart"})
_FIELDS: dict[str, str] = {
    "pool.cache": "cache_bytes",
    "pool.on_donor_loss": "on_donor_loss",
    "pool.rebuild_after": "rebuild_after_s",
    "pool.rebuild_rate": "rebuild_rate_bytes",
    "pool.slow": "slow_us",
    "pager.readahead": "readahead_bytes",
    "pager.poll_us": "poll_us",
    "pager.log_level": "log_level",
}
"""Keys that the pager of a running VM can take, or its replacement; each with the field of `PagerPlan`."""


class When(enum.StrEnum):
    """Says from when on a change applies."""

    NOW = "now"
    NEXT_START = "at the next start"


@dataclass(frozen=True)
class Applied:
    """Holds a change of the definition, and from when on it applies to the VM."""

    key: str
    before: Any
    after: Any
    applies: When

    def __str__(self) -> str:
        """Return the change as a sentence."""
        return f"{Change(self.key, self.before, self.after)} ({self.applies})"


def apply(book: Book, paths: Paths, state: VmState, defined: Defined, progress: Progress) -> tuple[Applied, ...]:
    """Write a changed definition, after a running VM has taken what it can take. Needs the VM's lock.

    Args:
        book: the VM's record, loaded.
        paths: where the VM lives.
        state: the VM's present state.
        defined: the new definition.
        progress: receives the stages.

    Raises:
        UsageError: sizes do not fit together.
        Refused: the VM cannot take the change; nothing has changed.
        GhostboxError: a step failed; the steps before it are undone.
    """
    record = book.record
    plan.check_sizes(defined.config)
    plan.check_loss(defined.config.pool.on_donor_loss, Virt(record.virt))
    runs = state is not VmState.STOPPED
    applied = tuple(_applied(change, runs=runs) for change in defined.changes)
    wanted = _wanted(record, defined, [each.key for each in applied if each.applies is When.NOW]) if runs else None
    if wanted == record.pager or wanted is None:
        definition.keep(book.files, defined.text)
        return applied
    with progress.stage("pager") as stage, _restored_on_failure(book, paths):
        _change_pager(book, paths, wanted)
        definition.keep(book.files, defined.text)
        stage.say("the pager has the new settings")
    return applied


def _applied(change: Change, *, runs: bool) -> Applied:
    now = change.key in _READ_BY_COMMANDS or (runs and change.key in _FIELDS)
    return Applied(change.key, change.before, change.after, When.NOW if now else When.NEXT_START)


def _wanted(record: Record, defined: Defined, keys: Sequence[str]) -> PagerPlan | None:
    """Return the settings that the VM's pager is to have; None if an older version, which kept none, started it."""
    if record.pager is None:
        return None
    new = plan.pager_plan(defined.config, Virt(record.virt))
    return replace(record.pager, **{_FIELDS[key]: getattr(new, _FIELDS[key]) for key in keys if key in _FIELDS})


def _change_pager(book: Book, paths: Paths, wanted: PagerPlan) -> None:
    """Change the pager's settings: through its control socket, or by a pager that takes over from it."""
    record, control = book.record, book.files.pager_control
    assert record.pager is not None
    now = record.pager
    if wanted.cache_bytes != now.cache_bytes:
        pager.set_cache(control, wanted.cache_bytes)
    if wanted.rebuild_rate_bytes != now.rebuild_rate_bytes:
        pager.set_rebuild_rate(control, wanted.rebuild_rate_bytes)
    book.save(replace(record, pager=wanted, cache_bytes=wanted.cache_bytes))
    if _at_start(wanted) != _at_start(now):
        takeover.replace_pager(book, paths)


def _at_start(settings: PagerPlan) -> PagerPlan:
    """Return the settings that a pager gets only at its start. The supervisor pauses a VM, not the pager."""
    loss = "poison" if settings.on_donor_loss == "poison" else "wait"
    return replace(settings, cache_bytes=0, rebuild_rate_bytes=0, on_donor_loss=loss)


@contextmanager
def _restored_on_failure(book: Book, paths: Paths) -> Iterator[None]:
    """Give the pager its present settings again if the block fails."""
    record = book.record
    assert record.pager is not None
    try:
        yield
    except BaseException:
        try:
            if pager.status(book.files.pager_control) is None:
                book.save(replace(record, pager=record.pager, cache_bytes=record.cache_bytes))
                takeover.heal_pager(book, paths)
            else:
                _change_pager(book, paths, record.pager)
        except GhostboxError as err:
            _log.warning("the pager could not be brought back to its settings: %s", err.message)
        raise
