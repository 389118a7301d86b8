# SPDX-License-Identifier: MIT
"""The port that leads to a guest's SSH server is none that the VM's own definition forwards elsewhere."""

from __future__ import annotations

import dataclasses

from ghostbox.session import planning
from ghostbox.system import ports
from helpers.stopped import RECORD


def test_a_stopped_vm_keeps_its_port_unless_its_definition_forwards_it_now() -> None:
    port = ports.choose()
    record = dataclasses.replace(RECORD, ssh_port=port)
    assert planning._ssh_port(record, frozenset()) == port
    assert planning._ssh_port(record, frozenset({port})) != port
