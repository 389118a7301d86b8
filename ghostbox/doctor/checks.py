# SPDX-License-Identifier: MIT
"""The list of checks, by the role that needs each."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from ghostbox.doctor import donors, hypervisor, machine, pager
from ghostbox.doctor.model import Check, Machine, fail
from ghostbox.errors import GhostboxError


class Role(enum.StrEnum):
    """What this machine is to do."""

    HOST = "host"
    DONOR = "donor"


_BOTH = frozenset(Role)
_HOST = frozenset({Role.HOST})
_DONOR = frozenset({Role.DONOR})

# In the order of the report: what all else needs comes first.
CHECKS: tuple[tuple[str, frozenset[Role], Callable[[str, Machine], Check]], ...] = (
    ("python", _BOTH, machine.python_version),
    ("system", _BOTH, machine.system),
    ("kernel", _BOTH, machine.kernel),
    ("programs", _BOTH, machine.programs),
    ("userfaultfd", _HOST, pager.device),
    ("userfaultfd-features", _HOST, pager.features),
    ("qemu", _HOST, hypervisor.qemu),
    ("libvirt", _HOST, hypervisor.libvirt),
    ("kvm", _HOST, hypervisor.kvm_access),
    ("kvm-guest", _HOST, hypervisor.kvm_guest),
    ("storage", _HOST, hypervisor.storage),
    ("security", _HOST, hypervisor.security),
    ("memory-host", _HOST, machine.memory_for_vm),
    ("donors", _HOST, donors.answers),
    ("hugepages", _HOST, machine.hugepages),
    ("swap", _BOTH, machine.swap),
    ("memory-donor", _DONOR, machine.memory_to_lend),
    ("nbd-port", _DONOR, machine.nbd_port),
    ("control-port", _DONOR, machine.control_port),
)


def run(subject: Machine, roles: Iterable[Role] = Role) -> list[Check]:
    """Run every check that one of ``roles`` needs. A check that fails unexpectedly is a failed check."""
    wanted = frozenset(roles)
    return [_run_one(name, check, subject) for name, needed_by, check in CHECKS if wanted & needed_by]


def _run_one(name: str, check: Callable[[str, Machine], Check], subject: Machine) -> Check:
    try:
        return check(name, subject)
    except GhostboxError as err:
        return fail(name, err.message, why=err.why or "the check itself failed", fix=err.hint)
    except OSError as err:
        return fail(name, str(err), why="the check itself failed")
