# SPDX-License-Identifier: MIT
"""What a machine of the network sees of a secure donor that it is not paired with: two ports and a version.

The donor is in a network namespace of its own, and lends memory to a paired host meanwhile.
tests/vm/test_up.py looks at such a donor from a guest.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import netns, outside
from helpers.donor import RunningDonor, running_donor
from helpers.paired import lend, new_token, pair


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    place = tmp_path_factory.mktemp("donor")
    with (
        netns.machines(1) as [machine],
        running_donor(place, bind=machine.address, prefix=machine.prefix) as running,
    ):
        assert running.ready["secure"]
        assert lend(pair(new_token(running)), "one").status_code == 201
        yield running


def test_two_ports_are_open(donor: RunningDonor) -> None:
    """For mDNS a donor listens at UDP port 5353 besides, as all do that announce themselves."""
    host, _, control = donor.address.rpartition(":")
    found = []
    for port in range(1, 1 << 16):
        with socket.socket() as sock:
            sock.settimeout(20)
            if sock.connect_ex((host, port)) == 0:
                found.append(port)
    assert sorted(found) == sorted([int(control), donor.nbd_port])


def test_a_stranger_learns_the_version_and_nothing_else(donor: RunningDonor, tmp_path: Path) -> None:
    asked = outside.routes(tmp_path)
    assert outside.look([sys.executable], donor, asked) == outside.expected(asked)
