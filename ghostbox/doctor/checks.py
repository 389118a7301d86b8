# SPDX-License-Identifier: MIT
"""List the checks, with the roles that need each."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from ghostbox.doctor import donors, machine, pager
from ghostbox.doctor.model import Check, Machine, fail
from ghostbox.errors import GhostboxError


class Role(enum.StrEnum):
    """Names what this machine is to do."""

    HOST = "host"
    DONOR = "donor"


def _of_hypervisor(check: str) -> Callable[[str, Machine], Check]:
    """Return a check of `doctor.hypervisor`, imported when the check runs: a donor has no libvirt-python."""

    def run_it(name: str, machine: Machine) -> Check:
        try:
            from ghostbox.doctor import hypervisor  # noqa: PLC0415 - see above
        except ModuleNotFoundError as err:
            why = "this installation is a donor's, which runs no VMs"
            return fail(name, f"the Python package {err.name} is not installed", why=why, fix="./bootstrap install")
        wanted: Callable[[str, Machine], Check] = getattr(hypervisor, check)
        return wanted(name, machine)

    return run_it


_BOTH = frozenset(Role)
_HOST = frozenset({Role.HOST})
_DONOR = frozenset({Role.DONOR})

# The checks are in the order of the report: what other checks depend on comes first.
CHECKS: tuple[tuple[str, frozenset[Role], Callable[[str, Machine], Check]], ...] = (
    ("python", _BOTH, machine.python_version),
    ("system", _BOTH, machine.system),
    ("kernel", _BOTH, machine.kernel),
    ("programs", _BOTH, machine.programs),
    ("userfaultfd", _HOST, pager.device),
    ("userfaultfd-features", _HOST, pager.features),
    ("qemu", _HOST, _of_hypervisor("qemu")),
    ("libvirt", _HOST, _of_hypervisor("libvirt")),
    ("kvm", _HOST, _of_hypervisor("kvm_access")),
    ("kvm-guest", _HOST, _of_hypervisor("kvm_guest")),
    ("storage", _HOST, _of_hypervisor("storage")),
    ("security", _HOST, _of_hypervisor("security")),
    ("memory-host", _HOST, machine.memory_for_vm),
    ("donors", _HOST, donors.answers),
    ("hugepages", _HOST, machine.hugepages),
    ("swap", _BOTH, machine.swap),
    ("memory-donor", _DONOR, machine.memory_to_lend),
    ("nbd-port", _DONOR, machine.nbd_port),
    ("control-port", _DONOR, machine.control_port),
)


def run(subject: Machine, roles: Iterable[Role] = Role) -> list[Check]:
    """Run every check that one of ``roles`` needs. An unexpected error in a check counts as a failed check."""
    wanted = frozenset(roles)
    return [_run_one(name, check, subject) for name, needed_by, check in CHECKS if wanted & needed_by]


def _run_one(name: str, check: Callable[[str, Machine], Check], subject: Machine) -> Check:
    try:
        return check(name, subject)
    except GhostboxError as err:
        return fail(name, err.message, why=err.why or "the check itself failed", fix=err.hint)
    except OSError as err:
        return fail(name, str(err), why="the check itself failed")
