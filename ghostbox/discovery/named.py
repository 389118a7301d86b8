# SPDX-License-Identifier: MIT
"""Find the one donor on the network that has a name, for a user who writes a name in place of an address.

A name proves nothing: whoever is on the network may announce it. What follows is safe by the code that the user
compares (docs/reference/pairing.md), or by the certificate of a donor that is paired.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence

from ghostbox.discovery.found import Found
from ghostbox.donors.pairings import Pairing
from ghostbox.errors import GhostboxError, NoAnswer, NotFound, Refused, UsageError

Look = Callable[[], Sequence[Found]]
_NAME = re.compile(r"(?!localhost$)(?!\d+$)[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LISTEN_S = 3.0


def is_name(word: str) -> bool:
    """Tell whether a user's word may be a donor's name: a word with a port, a dot or a colon is an address."""
    return _NAME.fullmatch(word) is not None


def address_of(word: str, known: Sequence[Pairing], look: Look | None = None) -> str:
    """Return the address of the donor that announces the name ``word``; without one, ``word``, if a machine has it.

    Args:
        word: what the user wrote.
        known: the donors that this host is paired with.
        look: returns the donors that are found; None asks the networks.

    Raises:
        NotFound: neither a donor nor a machine has this name.
        UsageError: several donors announce it.
        Refused: who announces it is not what it seems.
        NoAnswer: the donor announces itself, and does not answer.
        GhostboxError: multicast DNS cannot be used on this machine.
    """
    try:
        found = [row for row in (look or (lambda: _announced(known)))() if word == row.name]
    except GhostboxError:
        if _is_machine(word):
            return word
        raise
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} donors announce the name '{word}': {', '.join(row.address for row in found)}",
            hint=f"give the address of one: ghostbox donor add {found[0].address}",
        )
    if not found:
        if _is_machine(word):
            return word
        raise NotFound(
            f"no donor on the network announces the name '{word}', and no machine has it",
            hint="ghostbox donor scan shows which donors there are, and which networks were asked; an address always"
            " works: ghostbox donor add 192.168.7.2",
        )
    [row] = found
    if row.problem:
        raise Refused(f"donor {row.title}: {row.problem}", hint=row.hint)
    if row.unreached:
        raise NoAnswer(f"donor {row.title} announces itself, and does not answer", why=row.unreached)
    return row.address


def _announced(known: Sequence[Pairing]) -> Sequence[Found]:
    from ghostbox.discovery.scan import scan  # noqa: PLC0415 - zeroconf takes long to load, and most words are addresses

    return scan((), (), known, _LISTEN_S).donors


def _is_machine(word: str) -> bool:
    try:
        socket.getaddrinfo(word, None)
    except OSError:
        return False
    return True
