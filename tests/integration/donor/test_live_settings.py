# SPDX-License-Identifier: MIT
"""A running VM gets all its new settings at once, or none: with a real pager, and a process in QEMU's place."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ghostbox import config, pager
from ghostbox.errors import GhostboxError, Refused
from ghostbox.pager.model import PagerStatus
from ghostbox.session import definition, live, takeover
from ghostbox.session.live import When
from ghostbox.session.record import Book, VmState
from ghostbox.units import MIB
from helpers.reconcile_lab import Lab, laboratory

pytestmark = pytest.mark.timeout(180)

DEFINED = "vm: {memory: 512M, remote_memory: 128M, image: IMAGE}\npool: {cache: 8M}\n"


class Silent:
    """Discard the progress that a command would print."""

    seconds: dict[str, float] = {}  # noqa: RUF012 - nothing is kept here

    def stage(self, name: str) -> Any:
        return nullcontext(self)

    def note(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...


def changed(lab: Lab, **flags: object) -> dict[str, When]:
    """Change the definition of the running VM; return when each key takes effect."""
    book = Book(lab.book.files)
    book.load()
    loaded = config.load({"vm.name": "lab", **{key.replace("__", "."): value for key, value in flags.items()}})
    defined = definition.settle(book, loaded)
    return {each.key: each.applies for each in live.apply(book, lab.paths, VmState.RUNNING, defined, Silent())}


def begin(lab: Lab) -> PagerStatus:
    """Give the VM a definition and memory; return the pager's status."""
    record = lab.book.load()
    assert record is not None
    definition.keep(lab.book.files, DEFINED.replace("IMAGE", record.image))
    changed(lab, pool__cache="8M")
    lab.client.command("fill", seed=5)
    return status(lab)


def status(lab: Lab) -> PagerStatus:
    found = pager.status(lab.book.files.pager_control)
    assert found is not None
    return found


def test_what_the_pager_takes_counts_at_once_and_the_rest_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"]) as lab:
        before = begin(lab)
        applied = changed(lab, pool__cache="16M", pool__rebuild_rate="1M", vm__cpus=3, vm__autostart=True)
        assert applied == {
            "pool.cache": When.NOW,
            "pool.rebuild_rate": When.NOW,
            "vm.autostart": When.NOW,
            "vm.cpus": When.NEXT_START,
        }
        assert (status(lab).cache_bytes, status(lab).pid) == (16 * MIB, before.pid)
        assert changed(lab, pager__readahead="8K", pool__slow="5s") == {
            "pager.readahead": When.NOW,
            "pool.slow": When.NOW,
        }
        after = status(lab)
        assert after.pid != before.pid, "another pager has taken over"
        assert after.cache_bytes == 16 * MIB
        argv = Path(f"/proc/{after.pid}/cmdline").read_text().split("\0")
        assert argv[argv.index("--readahead") + 1] == "8192"
        assert argv[argv.index("--slow-us") + 1] == "5000000"
        lab.client.command("verify", seed=5)
        record = lab.book.load()
        assert record is not None and record.pager is not None
        assert (record.cache_bytes, record.pager.readahead_bytes) == (16 * MIB, 8192)
        assert changed(lab, pool__on_donor_loss="pause") == {"pool.on_donor_loss": When.NOW}
        assert status(lab).pid == after.pid, "pausing is the supervisor's"


def test_new_local_memory_of_a_vm_that_runs_goes_to_its_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"]) as lab:
        before = begin(lab)
        node0_bytes = config.load({"vm.memory": "512M"}).vm.memory_bytes
        for cache_bytes in (48 * MIB, 8 * MIB):
            assert changed(lab, vm__local=f"{(node0_bytes + cache_bytes) // MIB}M") == {"pool.cache": When.NOW}
            assert (status(lab).cache_bytes, status(lab).pid) == (cache_bytes, before.pid)
            record = lab.book.load()
            assert record is not None and record.cache_bytes == cache_bytes
            lab.client.command("verify", seed=5)


def test_settings_that_a_pager_cannot_take_over_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"]) as lab:
        before = begin(lab)
        text, record = lab.book.files.definition.read_text(), lab.book.load()

        def refused(*_: object) -> None:
            raise Refused("the new pager could not go on")

        monkeypatch.setattr(takeover, "_check_new_pager", refused)
        with pytest.raises(Refused):
            changed(lab, pool__cache="16M", pager__readahead="8K")
        assert (status(lab).cache_bytes, status(lab).pid) == (8 * MIB, before.pid)
        assert lab.book.files.definition.read_text() == text
        assert lab.book.load() == record
        with pytest.raises(Refused, match="poison needs KVM"):
            changed(lab, pool__cache="16M", pool__on_donor_loss="poison")
        assert status(lab).cache_bytes == 8 * MIB


def test_definition_that_cannot_be_written_leaves_the_pager_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"]) as lab:
        begin(lab)

        def full(*_: object) -> None:
            raise GhostboxError("no space is left")

        monkeypatch.setattr(definition, "keep", full)
        with pytest.raises(GhostboxError, match="no space is left"):
            changed(lab, pool__cache="16M", pager__readahead="8K")
        found = status(lab)
        assert found.cache_bytes == 8 * MIB
        argv = Path(f"/proc/{found.pid}/cmdline").read_text().split("\0")
        assert argv[argv.index("--readahead") + 1] != "8192"
        lab.client.command("verify", seed=5)
        record = lab.book.load()
        assert record is not None and record.pager is not None
        assert dataclasses.replace(record.pager, cache_bytes=8 * MIB) == record.pager
