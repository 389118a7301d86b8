# SPDX-License-Identifier: MIT
"""What befell a VM's memory, in the order it happened: ``events.jsonl``, written by the supervisor and by commands."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from ghostbox.paths import VmPaths
from ghostbox.session.record import now_utc

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Something that happened: when (UTC), a word for what, the donor it is about if it is about one, a sentence."""

    time: str
    event: str
    donor: str | None
    text: str


def append(files: VmPaths, event: str, text: str, *, donor: str | None = None) -> None:
    """Add an event. A full disk loses it, and nothing else."""
    line = json.dumps(asdict(Event(now_utc(), event, donor, text)))
    try:
        with files.events.open("a") as stream:
            stream.write(line + "\n")
    except OSError as err:
        _log.warning("event not kept (%s): %s", err.strerror, text)


def read(files: VmPaths) -> list[Event]:
    """Return all events; a line that was cut off is left out."""
    try:
        lines = files.events.read_text().splitlines()
    except OSError:
        return []
    return [event for line in lines if (event := parse(line)) is not None]


def parse(line: str) -> Event | None:
    """Return the event of a line, None if it is not one."""
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None


def sentence(line: str) -> str:
    """Return a line of the file as people read it."""
    event = parse(line)
    end = "\n" if line.endswith("\n") else ""
    return line if event is None else f"{event.time}  {event.event:<16} {event.text.replace(chr(10), ' ')}{end}"
