# SPDX-License-Identifier: MIT
"""A donor computes what it may lend from sizes, shares, the reserve and control group limits."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ghostbox.errors import Refused, UsageError
from ghostbox.memserver import memory
from ghostbox.memserver.memory import MemoryFacts
from ghostbox.units import GIB, MIB

FACTS = MemoryFacts(total_bytes=16 * GIB, available_bytes=12 * GIB)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("8G", 8 * GIB), ("50%", 8 * GIB), ("12.5 %", 2 * GIB), ("auto", 10 * GIB), ("AUTO", 10 * GIB)],
)
def test_sizes_shares_and_auto_name_bytes(size: str, expected: int) -> None:
    assert memory.size_to_lend(size, 2 * GIB, FACTS) == expected


def test_sizes_are_whole_pages() -> None:
    assert memory.size_to_lend("1048577", 0, FACTS) == MIB


def test_exactly_what_is_left_over_the_reserve_may_be_lent() -> None:
    assert memory.size_to_lend("10G", 2 * GIB, FACTS) == 10 * GIB


def test_more_than_available_less_reserve_is_refused_with_the_figures() -> None:
    with pytest.raises(Refused) as caught:
        memory.size_to_lend("11G", 2 * GIB, FACTS)
    assert caught.value.message == (
        "cannot lend 11 GiB: 12 GiB of 16 GiB are available, 2 GiB of them are kept in reserve, which leaves 10 GiB"
    )
    assert caught.value.hint == "--size 10240M, --size auto, or a lower --reserve"
    assert caught.value.exit_code == 5


def test_auto_is_refused_when_the_reserve_takes_all() -> None:
    with pytest.raises(Refused, match=r"cannot lend memory: 12 GiB of 16 GiB are available.*leaves 0 B"):
        memory.size_to_lend("auto", 12 * GIB, FACTS)


@pytest.mark.parametrize("size", ["lots", "", "-1G", "%", "1e3%"])
def test_what_is_no_size_says_how_to_write_one(size: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        memory.size_to_lend(size, 0, FACTS)
    assert caught.value.hint == "write a size such as 16G, a share of the machine's RAM such as 50%, or auto"


def test_more_than_all_ram_by_share_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'101%' is more than all RAM"):
        memory.size_to_lend("101%", 0, FACTS)


def test_less_than_a_megabyte_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--size 64K is too little to lend"):
        memory.size_to_lend("64K", 0, FACTS)


@pytest.mark.parametrize(("most", "high", "total"), [("max", 2 * GIB, 2), (3 * GIB, 2 * GIB, 2), (2 * GIB, "max", 2)])
def test_the_lower_of_both_limits_of_a_control_group_counts(
    tmp_path: Path, most: object, high: object, total: int
) -> None:
    group = tmp_path / "groups" / "slice"
    group.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/slice\n")
    files = {"memory.max": most, "memory.high": high, "memory.current": GIB, "memory.stat": "inactive_file 4096"}
    for name, value in files.items():
        (group / name).write_text(f"{value}\n")
    facts = memory.read_facts(tmp_path, tmp_path / "groups")
    assert (facts.total_bytes, facts.limited_by) == (total * GIB, str(group))
    assert facts.available_bytes == GIB + 4096


def test_facts_are_the_kernels_where_no_group_limits(tmp_path: Path) -> None:
    facts = memory.read_facts(tmp_path, tmp_path)
    assert facts.total_bytes == psutil.virtual_memory().total
    assert facts.limited_by is None


def _group(directory: Path, names: tuple[str, str], limit: str, usage: int, stat: str) -> None:
    directory.mkdir(parents=True)
    (directory / names[0]).write_text(limit + "\n")
    (directory / names[1]).write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(stat)


def _membership(proc: Path, text: str) -> None:
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(text)


def test_the_limit_of_a_parent_group_counts_less_what_is_in_use(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    _membership(proc, "0::/lent.slice/donor.service\n")
    names = ("memory.max", "memory.current")
    _group(groups / "lent.slice", names, str(512 * MIB), 100 * MIB, f"anon 1\ninactive_file {20 * MIB}\n")
    _group(groups / "lent.slice" / "donor.service", names, "max", 100 * MIB, "anon 1\ninactive_file 0\n")
    facts = memory.read_facts(proc, groups)
    assert facts == MemoryFacts(512 * MIB, 432 * MIB, str(groups / "lent.slice"))
    with pytest.raises(Refused) as caught:
        memory.size_to_lend("1G", 0, facts)
    assert caught.value.why == f"the limit of control group {groups / 'lent.slice'} counts"


def test_the_old_control_group_interface_counts_too(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    _membership(proc, "5:cpu,memory:/box\n0::/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    _group(groups / "memory" / "box", names, str(256 * MIB), 56 * MIB, "total_inactive_file 0\n")
    assert memory.read_facts(proc, groups).available_bytes == 200 * MIB


def test_a_limit_above_the_machines_ram_changes_nothing(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    _membership(proc, "0::/wide\n")
    _group(groups / "wide", ("memory.max", "memory.current"), str(2**60), 0, "inactive_file 0\n")
    assert memory.read_facts(proc, groups).limited_by is None
