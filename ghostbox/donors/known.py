# SPDX-License-Identifier: MIT
"""Keep the list of donors that this host knows, for ``donor add``, ``donor forget``, ``donor list`` and ``up``.

The list is a file in the state directory, ``known-donors.json``. It has each donor once, however its address is spelt,
by the donor's id. Of cloned donors with the same id, the machine that each runs on tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from ghostbox.donors.client import DonorStatus, parse_address
from ghostbox.errors import NotFound, UsageError
from ghostbox.paths import Paths
from ghostbox.system.documents import Part
from ghostbox.system.state_files import ListFile


@dataclass(frozen=True)
class KnownDonor(Part):
    """Describes a donor as it was when it was noted, or last seen.

    ``address`` is what the user wrote; ``id`` and ``name`` are the donor's own, ``machine`` is the digest that
    identifies its machine. They are empty for a donor of an older version.
    """

    address: str
    id: str = ""
    name: str = ""
    machine: str = ""

    def is_named(self, word: str) -> bool:
        """Tell whether a user's word means this donor: its address, or its name."""
        return word == self.name or same_address(word, self.address)


_LISTED = TypeAdapter(tuple[KnownDonor, ...])


def load(paths: Paths) -> tuple[KnownDonor, ...]:
    """Return the known donors, in the order in which they were noted.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    return _file(paths).load()


def note(paths: Paths, status: DonorStatus, address: str) -> tuple[KnownDonor, bool]:
    """Note a donor under ``address``; return its entry, and whether it is new.

    A donor that is known under another address keeps its place in the list, and gets this address.
    """
    found = KnownDonor(address, status.id, status.name, status.machine)
    new = True

    def changed(known: Sequence[KnownDonor]) -> list[KnownDonor]:
        nonlocal new, found
        before = next((each for each in known if is_same(each, found)), None)
        new = before is None
        if before is not None and before.id in ("", found.id):
            found = replace(found, further=before.further)
        others = [each for each in known if not is_same(each, found)]
        first = next((index for index, each in enumerate(known) if is_same(each, found)), len(others))
        return [*others[:first], found, *others[first:]]

    _file(paths).change(changed)
    return found, new


def forget(paths: Paths, word: str) -> KnownDonor:
    """Strike out the donor that ``word``, an address or a name, means.

    Raises:
        NotFound: no known donor has this address or name.
        UsageError: several known donors have this name.
    """
    gone: list[KnownDonor] = []

    def changed(known: Sequence[KnownDonor]) -> list[KnownDonor]:
        gone.extend(meant(known, word))
        return [each for each in known if each not in gone]

    _file(paths).change(changed)
    return gone[0]


def meant(known: Sequence[KnownDonor], word: str) -> list[KnownDonor]:
    """Return the known donor that ``word`` means, as a list of one.

    Raises:
        NotFound: no known donor has this address or name.
        UsageError: several known donors have this name.
    """
    found = [each for each in known if each.is_named(word)]
    if not found:
        names = ", ".join(each.address for each in known)
        raise NotFound(f"no donor '{word}' is known", hint=f"known are: {names}" if names else "ghostbox donor list")
    if len(found) > 1:
        raise UsageError(
            f"'{word}' is the name of {len(found)} donors",
            hint="give the address of one: " + ", ".join(each.address for each in found),
        )
    return found


def address_of(word: str, paths: Paths) -> str:
    """Return the address of the known donor that has the name ``word``; without one, ``word`` is the address.

    Raises:
        UsageError: several known donors have the name.
    """
    known = load(paths)
    if not any(each.is_named(word) for each in known):
        return word
    [found] = meant(known, word)
    return word if same_address(word, found.address) else found.address


def same_address(one: str, other: str) -> bool:
    """Tell whether two texts spell one address (``tower``, ``tower:10810``); other texts must be equal."""
    try:
        return str(parse_address(one)).lower() == str(parse_address(other)).lower()
    except UsageError:
        return one == other


def is_same(one: KnownDonor, other: KnownDonor) -> bool:
    """Tell whether two entries are one donor.

    Entries with the same address are one donor. Other entries are one donor if id and machine agree: a clone of a
    donor's disk has the same id, on another machine.
    """
    if same_address(one.address, other.address):
        return True
    return bool(one.id) and (one.id, one.machine) == (other.id, other.machine)


def _file(paths: Paths) -> ListFile[KnownDonor]:
    path = paths.state / "known-donors.json"
    return ListFile(path, "donors", _LISTED, f"the file only lists donors that this host knows: mend it, or rm {path}")
