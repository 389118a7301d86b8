# SPDX-License-Identifier: MIT
"""A port that a server is given is free, is none of those that are named, and is not handed out by the kernel."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ghostbox.errors import GhostboxError
from ghostbox.system import ports

ALL = frozenset(ports.CHOSEN_FROM)


def test_a_port_is_none_of_those_that_are_named() -> None:
    few = frozenset({20001, 20002, 20003})
    assert ports.choose(ALL - few) in few


def test_a_port_is_none_that_the_kernel_gives_to_connections_and_to_servers_that_name_none() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert ports.choose() in ports.CHOSEN_FROM
    assert ports.CHOSEN_FROM.stop <= first


def test_a_port_on_which_a_server_listens_is_not_chosen() -> None:
    port = ports.choose()
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free(port)
        with pytest.raises(GhostboxError, match=r"^no port of 127\.0\.0\.1 from 16384 to 29999 is free$") as caught:
            ports.choose(ALL - {port})
    assert caught.value.hint == "see which programs listen there: ss -tlnp"
    assert ports.choose(ALL - {port}) == port
