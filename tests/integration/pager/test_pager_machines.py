# SPDX-License-Identifier: MIT
"""Two copies are on two machines; a machine counts once, under whatever names and networks its donors are reached."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.pager import RunningMemserver, running_memserver, running_pager
from helpers.takeover import pager_line

TWO_COPIES: dict[str, Any] = {"cache": "2M", "replicas": "2", "pool": "16M", "extent": "1M"}
TOO_FEW = "2 replicas need donors on 2 hosts"


def _hosts(status: dict[str, Any]) -> list[str]:
    return [donor["host"] for donor in status["donors"]]


def _renamed(donor: RunningMemserver) -> str:
    """Return the export's URI with another name of the same address."""
    return donor.uri("a").replace("127.0.0.1", "localhost")


def test_the_machine_that_a_donor_names_counts_and_not_its_address() -> None:
    with (
        running_memserver(a="16M", options=["--machine", "tower"]) as one,
        running_memserver(a="16M", options=["--machine", "tower", "--bind", "127.0.0.2"]) as two,
        running_memserver(a="16M", options=["--machine", "attic"]) as three,
    ):
        with pytest.raises(RuntimeError, match=TOO_FEW), running_pager([one.uri("a"), two.uri("a")], **TWO_COPIES):
            pass
        with running_pager([one.uri("a"), three.uri("a")], **TWO_COPIES) as pager:
            assert _hosts(pager.status()) == ["tower", "attic"]


def test_donors_that_name_no_machine_are_told_apart_by_the_address_they_are_found_at() -> None:
    with running_memserver(a="16M") as one, running_memserver(a="16M", options=["--bind", "127.0.0.2"]) as two:
        for uris in ([_renamed(one), one.uri("a")], [one.uri("a"), two.uri("a")]):
            with pytest.raises(RuntimeError, match=TOO_FEW), running_pager(uris, **TWO_COPIES):
                pass
        with running_pager([one.uri("a"), two.uri("a")], **{**TWO_COPIES, "allow_same_host": ""}) as pager:
            assert _hosts(pager.status()) == ["loopback", "loopback"]


def test_the_next_pager_knows_the_machines_though_their_donors_are_silent() -> None:
    with (
        running_memserver(a="16M", options=["--machine", "tower"]) as one,
        running_memserver(a="16M", options=["--machine", "attic"]) as two,
        pager_line([one.uri("a"), two.uri("a")], **TWO_COPIES) as line,
    ):
        line.kill()
        one.process.kill()
        two.process.kill()
        line.resume()
        assert _hosts(line.status()) == ["tower", "attic"]
