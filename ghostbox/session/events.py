# SPDX-License-Identifier: MIT
"""Record what happened to a VM's memory, in ``events.jsonl``; the supervisor and commands append to it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from ghostbox.paths import VmPaths, open_private
from ghostbox.session.record import now_utc
from ghostbox.system import documents

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Holds one event.

    ``time`` is UTC, ``event`` a word for the kind, ``donor`` the donor's URI or address if the event has one, and
    ``text`` a sentence.
    """

    time: str
    event: str
    donor: str | None
    text: str


def append(files: VmPaths, event: str, text: str, *, donor: str | None = None) -> None:
    """Append an event. If that fails, the event is logged instead, and nothing else is affected."""
    line = json.dumps(asdict(Event(now_utc(), event, donor, text)))
    try:
        with open_private(files.events, append=True) as stream:
            stream.write(line.encode() + b"\n")
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
    """Return the event in a line, None if the line holds none."""
    try:
        return Event(**documents.known(json.loads(line), Event))
    except (ValueError, TypeError, AttributeError):
        return None


def sentence(line: str) -> str:
    """Return a line of the file in the form that people read."""
    event = parse(line)
    end = "\n" if line.endswith("\n") else ""
    return line if event is None else f"{event.time}  {event.event:<16} {event.text.replace(chr(10), ' ')}{end}"
