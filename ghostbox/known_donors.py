# SPDX-License-Identifier: MIT
"""The donors that this host knows: noted by ``donor add``, forgotten by ``donor forget``, used by ``up``.

One file in the state directory, ``known-donors.json``. A donor is in it once, whatever its address is spelt like: the
donor's id tells (two donors of one id, which were cloned, are told apart by the machine that each runs on).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostbox.donor_client import DonorStatus, parse_address
from ghostbox.errors import GhostboxError, NotFound, UsageError, hint_for
from ghostbox.paths import Paths, make_directory


@dataclass(frozen=True)
class KnownDonor:
    """A donor as it was when it was noted, or last seen.

    ``address`` is what the user wrote; ``id`` and ``name`` are the donor's own, ``machine`` is the digest by which it
    says which machine it runs on. They are empty for a donor of an older version.
    """

    address: str
    id: str = ""
    name: str = ""
    machine: str = ""

    def is_named(self, word: str) -> bool:
        """Tell whether a word that a user wrote means this donor: its address, or its name."""
        return word == self.name or same_address(word, self.address)


def load(paths: Paths) -> tuple[KnownDonor, ...]:
    """Return the donors that are known, in the order in which they were noted.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    file = _file(paths)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["donors"]
        fields = KnownDonor.__dataclass_fields__.keys()
        return tuple(KnownDonor(**{key: str(entry[key]) for key in fields & entry.keys()}) for entry in entries)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise GhostboxError(
            f"cannot read {file}: {err}", hint=f"it only lists the donors that this host knows: mend it, or rm {file}"
        ) from err


def note(paths: Paths, status: DonorStatus, address: str) -> tuple[KnownDonor, bool]:
    """Note a donor under ``address``; return what is known of it now, and whether it is new.

    One that is known under another address keeps its place, and gets this address.
    """
    found = KnownDonor(address, status.id, status.name, status.machine)
    new = True

    def changed(known: Sequence[KnownDonor]) -> list[KnownDonor]:
        nonlocal new
        new = not any(is_same(each, found) for each in known)
        others = [each for each in known if not is_same(each, found)]
        first = next((index for index, each in enumerate(known) if is_same(each, found)), len(others))
        return [*others[:first], found, *others[first:]]

    _change(paths, changed)
    return found, new


def forget(paths: Paths, word: str) -> KnownDonor:
    """Strike out the donor that ``word``, an address or a name, means.

    Raises:
        NotFound: no donor is known by it.
        UsageError: several are.
    """
    gone: list[KnownDonor] = []

    def changed(known: Sequence[KnownDonor]) -> list[KnownDonor]:
        gone.extend(meant(known, word))
        return [each for each in known if each not in gone]

    _change(paths, changed)
    return gone[0]


def meant(known: Sequence[KnownDonor], word: str) -> list[KnownDonor]:
    """Return the one known donor that ``word`` means, as a list.

    Raises:
        NotFound: no donor is known by it.
        UsageError: several are.
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


def same_address(one: str, other: str) -> bool:
    """Tell whether two texts spell one address (``tower`` and ``tower:10810``); text that is no address is itself."""
    try:
        return str(parse_address(one)).lower() == str(parse_address(other)).lower()
    except UsageError:
        return one == other


def is_same(one: KnownDonor, other: KnownDonor) -> bool:
    """Tell whether two entries are one donor.

    Its id says so. Two addresses that are not spelt alike are one donor of that id only if they are on one machine, as
    the digest says: the disk of a donor that was cloned has the same id elsewhere.
    """
    if same_address(one.address, other.address):
        return True
    return bool(one.id) and (one.id, one.machine) == (other.id, other.machine)


def _file(paths: Paths) -> Path:
    return paths.state / "known-donors.json"


def _change(paths: Paths, changed: Callable[[Sequence[KnownDonor]], Sequence[KnownDonor]]) -> None:
    file = _file(paths)
    try:
        with _locked(file):
            document = {"donors": [asdict(each) for each in changed(load(paths))]}
            draft = file.with_suffix(".new")
            with draft.open("w", encoding="utf-8") as stream:
                json.dump(document, stream, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
    except OSError as err:
        raise GhostboxError(
            f"cannot write {file}: {err.strerror}", hint=hint_for(err, "see that it can be written")
        ) from err


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let one command at a time change the file: what another one notes meanwhile is not lost."""
    make_directory(file.parent)
    descriptor = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
