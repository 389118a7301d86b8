# SPDX-License-Identifier: MIT
"""The port that leads to a guest's SSH server is none that the VM's own definition forwards elsewhere."""

from __future__ import annotations

import dataclasses

from ghostbox.session import planning
from helpers.stopped import RECORD

ALL = frozenset(range(1, 1 << 16))


def test_a_free_port_is_none_of_those_that_are_taken() -> None:
    few = frozenset(planning.free_port() for _ in range(200))
    assert planning.free_port(ALL - few) in few


def test_a_stopped_vm_keeps_its_port_unless_its_definition_forwards_it_now() -> None:
    port = planning.free_port()
    record = dataclasses.replace(RECORD, ssh_port=port)
    assert planning._ssh_port(record, frozenset()) == port
    assert planning._ssh_port(record, frozenset({port})) != port
