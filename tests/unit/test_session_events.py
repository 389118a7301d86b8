# SPDX-License-Identifier: MIT
"""Events are kept in order, one to a line, and shown as sentences; a damaged line hides no other line."""

from __future__ import annotations

import json
from pathlib import Path

from ghostbox.paths import VmPaths
from ghostbox.session import events


def test_events_are_read_back_and_shown_as_sentences(tmp_path: Path) -> None:
    files = VmPaths(tmp_path, tmp_path)
    events.append(files, "donor-down", "donor attic was up and is down", donor="nbd://a:1/x")
    with files.events.open("a") as stream:
        stream.write('{"time": "cut o\n')
    events.append(files, "paused", "the VM is paused until attic is back")
    assert [event.event for event in events.read(files)] == ["donor-down", "paused"]
    line = files.events.read_text().splitlines()[0]
    assert json.loads(line).keys() == {"time", "event", "donor", "text"}
    assert events.sentence(line).endswith("  donor-down       donor attic was up and is down")


def test_directory_that_is_gone_loses_the_event_and_nothing_else(tmp_path: Path) -> None:
    gone = VmPaths(tmp_path / "gone", tmp_path)
    events.append(gone, "paused", "nobody hears it")
    assert events.read(gone) == []


def test_event_of_a_newer_version_is_shown(tmp_path: Path) -> None:
    files = VmPaths(tmp_path, tmp_path)
    line = {"time": "2026-01-01T00:00:00+00:00", "event": "paused", "donor": None, "text": "it waits", "rack": 7}
    files.events.write_text("[]\n" + json.dumps(line) + "\n")
    assert [event.text for event in events.read(files)] == ["it waits"]
