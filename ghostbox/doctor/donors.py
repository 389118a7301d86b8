# SPDX-License-Identifier: MIT
"""Check that the donors of the configuration answer."""

from __future__ import annotations

from ghostbox import donors
from ghostbox.doctor.model import Check, Machine, ok, warn
from ghostbox.donors import Survey, known, trust
from ghostbox.system import consent
from ghostbox.units import format_bytes


def answers(name: str, machine: Machine) -> Check:
    """Check that each donor of `pool.donors` answers and lends; without one of them `up` refuses to start a VM."""
    if machine.config.pool.insecure:
        consent.give()
    asked = donors.survey([known.address_of(each, machine.paths) for each in machine.config.pool.donors])
    if not asked:
        return ok(name, "none in the configuration (pool.donors); name them with `ghostbox up --donor`")
    found = ", ".join(f"{each.address} {_account(each)}" for each in asked)
    errors = [each.error for each in asked if each.error is not None]
    if errors:
        why = "; ".join(f"{err.message}: {err.why}" if err.why else err.message for err in errors)
        return warn(name, found, why=why, fix=next((err.hint for err in errors if err.hint), None))
    if any(each.status is not None and each.status.draining for each in asked):
        why = "a donor that is draining wants its memory back and gives no new lease"
        return warn(name, found, why=why, fix="ghostbox donor info ADDRESS says why; there, memserver drain --undo")
    if any(trust.means_of(each.address) is trust.Means.INSECURE for each in asked):
        why = "what goes to a donor without pairing is neither encrypted nor protected (pool.insecure)"
        return warn(name, found, why=why, fix=f"pair: {trust.PAIR_HINT}")
    return ok(name, found)


def _account(asked: Survey) -> str:
    if asked.status is None:
        return "does not answer"
    if asked.status.draining:
        return "is draining"
    free = f"has {format_bytes(asked.status.free_bytes)} free of {format_bytes(asked.status.size_bytes)}"
    means = trust.means_of(asked.address)
    return free if means is trust.Means.LOCAL else f"{free} ({means})"
