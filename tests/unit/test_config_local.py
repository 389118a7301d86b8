# SPDX-License-Identifier: MIT
"""``vm.local`` gives a VM's whole RAM on this machine as one value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.config import definition
from ghostbox.errors import ConfigError
from ghostbox.units import GIB, MEMORY_BLOCK_BYTES, MIB


def split(**flags: str) -> tuple[int, int]:
    loaded = config.load({key.replace("__", "."): value for key, value in flags.items()})
    return loaded.vm.memory_bytes, loaded.pool.cache_bytes


@pytest.mark.parametrize("local", ["384M", "448M", "1G", "5G", "5000M", "64G"])
def test_it_is_split_into_whole_blocks_of_node_0_and_the_cache(local: str) -> None:
    memory, cache = split(vm__local=local)
    assert memory % MEMORY_BLOCK_BYTES == 0
    assert memory + cache == config.load({"vm.memory": local}).vm.memory_bytes
    assert memory >= 256 * MIB and cache >= MEMORY_BLOCK_BYTES // 2


def test_either_part_may_be_fixed() -> None:
    assert split(vm__local="5G", vm__memory="4G") == (4 * GIB, GIB)
    assert split(vm__local="5G", pool__cache="512M") == (4608 * MIB, 512 * MIB)


def test_what_is_written_nearer_counts_and_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("vm: {local: 5G}\n")
    loaded = config.load({"vm.memory": "2G"}, file)
    assert (loaded.vm.memory_bytes, loaded.pool.cache_bytes) == (2 * GIB, 2 * GIB)
    assert loaded.origin("pool.cache").startswith(str(file))
    assert {"vm.memory", "pool.cache"} <= loaded.given


def test_a_definition_has_both_parts_and_not_the_whole() -> None:
    written = definition.frozen(config.load({"vm.local": "5G"}))
    assert (written["vm.memory"], written["pool.cache"]) == ("3GiB", "2GiB")
    with pytest.raises(ConfigError, match=r"vm\.yaml:1: vm\.local is not a part of a VM's definition, which has"):
        definition.parse("vm: {local: 5G}\n", "vm.yaml", "box", Path("/"))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_VM_LOCAL", "5G")
    assert split() == split(vm__local="5G")


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        ({"vm.local": "much"}, "--local: 'much' is not a size", "write a size"),
        ({"vm.local": "12M"}, "--local: 12 MiB is too small, the least is 384 MiB", "memory and cache together"),
        (
            {"vm.local": "5G", "vm.memory": "4G", "pool.cache": "1G"},
            "--local: vm.memory and pool.cache are given, too, and mean the same memory",
            "leave one of the three out",
        ),
        (
            {"vm.local": "5G", "vm.memory": "5G"},
            "--local: vm.memory (5 GiB) is not smaller than all local memory (5 GiB)",
            "raise vm.local, or leave vm.memory out",
        ),
    ],
)
def test_what_cannot_be_is_refused(flags: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$") as caught:
        config.load(flags)
    assert hint in str(caught.value.hint)
