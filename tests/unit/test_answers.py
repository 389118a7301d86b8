# SPDX-License-Identifier: MIT
"""Programs of other versions answer on control sockets: new fields are ignored, and an unfit answer is reported."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox import __version__, pager
from ghostbox.donors.models import Holder
from ghostbox.memserver import model, records
from ghostbox.memserver.audit import AuditLog
from ghostbox.memserver.data_plane import DataPlane, PlaneSettings
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.records import PlaneRecord, Records
from ghostbox.pager import page_map
from ghostbox.session import host_memory
from ghostbox.system import process_table
from ghostbox.system.processes import ControlError
from helpers.fake_control import fake_control

NEWER = "9.8.7"
CELLS = {kind: [0] for kind in (*page_map.PLACES, "dirty")}
REGION = {"length_bytes": 40960, **CELLS, "absent": [10]}
PLANE = {"pid": 1, "host": "127.0.0.1", "port": 7, "size_bytes": 8192, "exported_bytes": 4096, "resident_bytes": 0}
EXPORT = {
    "name": "one",
    "size_bytes": 4096,
    "resident_bytes": 0,
    "incarnation": "a",
    "connections": 2,
    "idle_s": 0.5,
}


@pytest.fixture
def control() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gb-") as place:  # the path of a socket must be short
        yield Path(place) / "control.sock"


def misfit(program: str, version: str, cmd: str, problem: str) -> str:
    form = f"{program} {version} answers '{cmd}' in a form that GhostBox {__version__} does not know: {problem}"
    return f"^{re.escape(form)}$"


def test_fields_of_a_newer_program_are_ignored(control: Path) -> None:
    status = {**PLANE, "exports": [{**EXPORT, "new": 1}], "also": [{"host": "::1", "port": 8, "new": 1}], "new": {}}
    with fake_control(control, {"status": status, "page-map": {"regions": [{**REGION, "new": 1}], "new": 1}}):
        found = page_map.ask(control)
        plane = model.status(control)
    assert found is not None
    assert (found.length_bytes, found.absent) == (40960, (10,))
    assert plane.by_name == {"one": model.Export.model_validate(EXPORT)}
    assert plane.also == (model.Address(host="::1", port=8),)


def test_fields_that_an_older_memserver_does_not_send_have_defaults(control: Path) -> None:
    with fake_control(control, {"status": {**PLANE, "exports": []}}):
        plane = model.status(control)
    assert (plane.connections, plane.also, plane.exports) == (0, (), ())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"regions": [CELLS]}, "regions.0.length_bytes: Field required"),
        ({"regions": [REGION, {**REGION, "dirty": ["x"]}]}, "regions.1.dirty.0: Input should be a valid integer"),
        ({"regions": [{**REGION, "moving": [0, 0]}]}, "regions.0: Value error, cells by place: 1, 1, 1, 1, 2, 1, 1"),
        (
            {"regions": [dict.fromkeys(REGION, ()) | {"length_bytes": 1}]},
            "regions.0.absent: Tuple should have at least",
        ),
        ({"regions": [{**REGION, "length_bytes": 0}]}, "regions.0.length_bytes: Input should be greater than 0"),
        ({}, "regions: Field required"),
        (None, "the whole value: Input should be a valid dictionary"),
    ],
)
def test_page_map_that_does_not_fit_names_the_pager_and_its_version(
    control: Path, answer: object, problem: str
) -> None:
    said = {"page-map": answer, "status": {"version": NEWER}}
    with fake_control(control, said), pytest.raises(ControlError) as caught:
        page_map.ask(control)
    wanted = misfit("ghostbox-pager", NEWER, "page-map", problem).removesuffix("$")
    assert re.match(wanted, caught.value.message), caught.value.message
    assert (caught.value.code, caught.value.why) == (
        "misfit",
        f"the program listens on {control}, and is of another version",
    )
    assert caught.value.hint is not None
    assert "ghostbox recover --restart" in caught.value.hint


def test_status_that_is_no_pagers_is_said(control: Path) -> None:
    message = misfit("ghostbox-pager", NEWER, "status", "pages: Field required")
    with fake_control(control, {"status": {"version": NEWER}}), pytest.raises(ControlError, match=message):
        pager.status(control)


def test_bytes_of_a_drain_that_are_not_there_are_said_of_a_program_of_unknown_version(control: Path) -> None:
    message = misfit("ghostbox-pager", "of an unknown version", "drain-donor", "bytes: Field required")
    with fake_control(control, {"drain-donor": {}}), pytest.raises(ControlError, match=message):
        pager.drain_donor(control, "nbd://127.0.0.1/one")


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (
            {**PLANE, "exports": [{**EXPORT, "size_bytes": "much"}]},
            r"exports.0.size_bytes: Input should be a valid",
        ),
        ({key: value for key, value in PLANE.items() if key != "port"} | {"exports": []}, "port: Field required"),
    ],
)
def test_memserver_whose_status_does_not_fit_is_not_adopted_and_says_its_version(
    control: Path, tmp_path: Path, status: dict[str, Any], problem: str
) -> None:
    settings = PlaneSettings(Path("/none"), control, tmp_path / "log", "127.0.0.1", 0, 8192, "id", "machine")
    wanted = misfit("ghostbox-memserver", NEWER, "status", problem).removesuffix("$")
    with fake_control(control, {"status": {"version": NEWER, **status}}):
        with pytest.raises(ControlError, match=wanted) as caught:
            DataPlane.adopt(settings, None)
        with pytest.raises(ControlError, match=wanted):
            host_memory._port(control)
    assert caught.value.hint is not None
    assert "ghostbox memserver drain" in caught.value.hint


def test_lease_whose_export_is_not_understood_stays_in_the_records(control: Path, tmp_path: Path) -> None:
    """The export may exist: without the record it would have no owner."""
    settings = PlaneSettings(Path("/none"), control, tmp_path / "log", "127.0.0.1", 0, 8192, "id", "machine")
    own = PlaneRecord(os.getpid(), process_table.start_ticks(os.getpid()), process_table.boot_id(), "a", str(control))
    kept = tmp_path / "leases.json"
    said = {"status": {"version": NEWER, **PLANE, "exports": []}, "export-add": {"name": "one"}}
    with fake_control(control, said):
        plane = DataPlane(settings, own, lambda: None)
        try:
            book = LeaseBook(plane, kept, Records(plane=own), lambda: None, AuditLog(tmp_path / "audit"))
            message = misfit("ghostbox-memserver", NEWER, "export-add", "size_bytes: Field required")
            with pytest.raises(ControlError, match=message):
                book.create("one", 4096, Holder("host", "vm"))
        finally:
            plane.close()
    assert records.load(kept).leases["one"].incarnation is None
