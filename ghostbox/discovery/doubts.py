# SPDX-License-Identifier: MIT
"""Say which of the donors that a scan found are not what they seem: copies, and those that imitate another donor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ghostbox.discovery.found import Found
from ghostbox.donors.pairings import Pairing

_IMITATED = (
    "somebody on this network may imitate it: have nothing to do with it until you have looked at the donor itself"
)


def judged(rows: Sequence[Found], known: Sequence[Pairing]) -> list[Found]:
    """Return the rows, each with its problem if it has one.

    Args:
        rows: one for each donor that was found.
        known: the donors that this host is paired with.
    """
    return [_judged(row, [each for each in rows if each is not row], known) for row in rows]


def _judged(row: Found, others: Sequence[Found], known: Sequence[Pairing]) -> Found:
    problem, hint = _imitation(row, known) or _lie(row) or _twin(row, others) or _namesake(row, others) or ("", "")
    return replace(row, problem=problem, hint=hint)


def _imitation(row: Found, known: Sequence[Pairing]) -> tuple[str, str] | None:
    """Return the problem of a donor that goes by the name or the id of a paired one, without its certificate."""
    if row.unreached or row.paired:
        return None
    names = {row.name, row.id} - {""}
    like = next((each for each in known if names & {each.name, each.donor}), None)
    if like is None:
        return None
    shown = f"the certificate {short(row.fingerprint)}" if row.fingerprint else "no certificate"
    return (
        f"it calls itself '{like.name}', which this host is paired with, but shows {shown} instead of"
        f" {short(like.fingerprint)}",
        f"{_IMITATED}. If you installed it anew yourself: ghostbox donor forget {like.name}, then pair again with a new"
        " token",
    )


def _lie(row: Found) -> tuple[str, str] | None:
    """Return the problem of a donor that announces something else than it shows."""
    said = row.announced
    if said is None or row.unreached:
        return None
    if said.fingerprint and said.fingerprint != row.fingerprint:
        shown = f"shows {short(row.fingerprint)}" if row.fingerprint else "shows none"
        return f"it announces the certificate {short(said.fingerprint)} and {shown}", _IMITATED
    if row.status is not None and (said.name, said.id) != (row.status.name, row.status.id):
        return f"it announces itself as '{said.name}' and says that it is '{row.status.name}'", _IMITATED
    return None


def _twin(row: Found, others: Sequence[Found]) -> tuple[str, str] | None:
    """Return the problem of two donors with one id."""
    for other in others:
        same_id = bool(row.id) and row.id == other.id
        if same_id or (row.fingerprint and row.fingerprint == other.fingerprint):
            return (
                f"it has the same id as {other.title}: the disk of one is a copy of the other's, or one imitates the"
                " other",
                "on the copy: end its memserver, remove identity.json from its state directory (ghostbox paths) and"
                " start it again: it gets an id and a certificate of its own",
            )
    return None


def _namesake(row: Found, others: Sequence[Found]) -> tuple[str, str] | None:
    """Return the problem of two donors with one name; a paired one is known by its certificate and has none."""
    other = next((each for each in others if row.name and each.name == row.name), None)
    if other is None or row.paired:
        return None
    return (
        f"two donors are called '{row.name}': this one, and the one at {other.address}",
        "give one of them another name there (memserver.name); until then compare the fingerprint with what the donor"
        " itself shows, and use addresses",
    )


def short(fingerprint: str) -> str:
    """Return the beginning of a fingerprint, which is enough to tell two by eye."""
    return fingerprint[:16]
