# SPDX-License-Identifier: MIT
"""The load that measures redundancy writes correct parity: the servers' parity is that of the servers' data."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ghostbox import paths
from helpers.nbd import read_export
from helpers.pager import RunningMemserver, running_memserver, short_dir

SPAN_BYTES = 512 << 10
N_STRIPES = SPAN_BYTES // 4096
Pages = npt.NDArray[np.uint64]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[RunningMemserver]]:
    """Yield four servers with an export of the span."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running_memserver(a=str(SPAN_BYTES))) for _ in range(4)]


def run(ports: str, **words: object) -> subprocess.CompletedProcess[str]:
    said = (f"ports={ports}", "export=a", *(f"{key}={value}" for key, value in words.items()))
    program = paths.find().native / "ghostbox-bench-client"
    return subprocess.run([program, "redundancy", *said], capture_output=True, text=True, timeout=60, check=False)


def ports_of(servers: list[RunningMemserver]) -> str:
    return ",".join(server.address.rpartition(":")[2] for server in servers)


def result(servers: list[RunningMemserver], **words: object) -> dict[str, Any]:
    done = run(ports_of(servers), **words)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def stripes(servers: list[RunningMemserver], width: int, tmp_path: Path) -> Pages:
    """Return all stripes as they are on the servers: stripe, place, word."""
    found = [
        np.frombuffer(read_export(server.uri("a"), tmp_path / "export"), dtype=np.uint64).reshape(N_STRIPES, 512)
        for server in servers
    ]
    numbers = np.arange(N_STRIPES)
    return np.stack([np.stack(found)[(numbers + place) % len(servers), numbers] for place in range(width)], axis=1)


@pytest.mark.parametrize(("n_servers", "k"), [(3, 2), (4, 3), (4, 2)])
def test_parity_is_that_of_the_data_after_writes_in_place(
    servers: list[RunningMemserver], n_servers: int, k: int, tmp_path: Path
) -> None:
    used = servers[:n_servers]
    filled = result(used, mode="stripes", k=k, pattern="sequential", count=N_STRIPES, seed=n_servers)
    assert filled["pages"] == N_STRIPES * k
    before = stripes(used, k + 1, tmp_path)
    assert before.any(axis=2).all(), "a page of zeroes was written"
    # There are more writes than stripes, and many are in flight: two writes to a stripe must both count in its parity.
    found = result(used, mode="parity", k=k, depth=64, count=N_STRIPES * 20)
    after = stripes(used, k + 1, tmp_path)
    assert (after != before).any(axis=2).mean() > 0.95
    for pages in (before, after):
        assert not np.bitwise_xor.reduce(pages, axis=1).any(), "XOR of the data is not the parity"
    assert found["latency"]["count"] == found["pages"] == N_STRIPES * 20


def test_copies_are_the_same_page_on_two_servers(servers: list[RunningMemserver], tmp_path: Path) -> None:
    result(servers, mode="copies", k=2, pattern="sequential", count=N_STRIPES)
    pages = stripes(servers, 2, tmp_path)
    assert pages.any(axis=2).all()
    assert (pages[:, 0] == pages[:, 1]).all()


@pytest.mark.parametrize(
    ("words", "requests", "bytes_a_page"),
    [
        ({"mode": "copies", "k": 1}, 1, 4096 + 28 + 16),
        ({"mode": "copies", "k": 2}, 2, 2 * (4096 + 28 + 16)),
        ({"mode": "parity", "k": 3}, 4, 4 * (4096 + 28 + 16)),
        ({"mode": "stripes", "k": 3}, 4 / 3, 4 / 3 * (4096 + 28 + 16)),
    ],
)
def test_a_page_takes_the_requests_and_bytes_that_its_way_needs(
    servers: list[RunningMemserver], words: dict[str, object], requests: float, bytes_a_page: float
) -> None:
    def served() -> int:
        counters = [server.status()["counters"] for server in servers]
        return sum(each["reads"] + each["writes"] for each in counters)

    before = served()
    found = result(servers, **words, ms=50)
    assert found["pages"] > 0
    assert served() - before == pytest.approx(found["pages"] * requests)
    assert found["sent_bytes"] + found["received_bytes"] == pytest.approx(found["pages"] * bytes_a_page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mode": "raid"}, "mode=raid is none of copies, parity, stripes"),
        ({"mode": "parity", "k": 4}, "there must be a server for each page of a stripe"),
        ({"mode": "copies", "k": 0}, "k must be from 1"),
        ({"mode": "copies", "depth": 128}, "span twice the depth"),
        ({"mode": "stripes", "k": 3, "depth": 2}, "depth must hold a stripe"),
        ({"ports": "1"}, "NBD server 127.0.0.1:1: cannot connect"),
        ({"ports": "1,2,3,4,5,6,7,8"}, "cannot connect"),
        ({"speed": "fast"}, "the command does not know speed=fast"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    servers: list[RunningMemserver], words: dict[str, Any], message: str
) -> None:
    done = run(**{"ports": ports_of(servers), **words})
    assert done.returncode == 1
    assert message in done.stderr


def test_the_short_form_has_every_ratio(ghostbox_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    with short_dir() as place:
        done = ghostbox_cli("bench", "--short", "--only", "redundancy", "--json", env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert all(row["ratio"]["median"] > 0 and row["reference_name"] == "one copy" for row in rows)
    bytes_of = {
        row["subject"]: row["ratio"]["median"] for row in rows if row["unit"] == "B" and "pager" not in row["what"]
    }
    assert bytes_of == pytest.approx(
        {
            "two copies": 2.0,
            "parity 2+1 in place": 4.0,
            "parity 3+1 in place": 4.0,
            "parity 2+1 of whole stripes": 3 / 2,
            "parity 3+1 of whole stripes": 4 / 3,
        }
    )
