# SPDX-License-Identifier: MIT
"""A word in place of an address: which donor it means, and what is said where it means none, or several."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest

from ghostbox.discovery import named
from ghostbox.discovery.found import Found
from ghostbox.discovery.record import Announced
from ghostbox.errors import GhostboxError, NoAnswer, NotFound, Refused, UsageError

TOWER = Found("tower", "1" * 16, "192.0.2.7:10810", announced=Announced("tower", "1" * 16, "0.1", "f" * 64))
ATTIC = Found("attic", "2" * 16, "192.0.2.8:10810", announced=Announced("attic", "2" * 16, "0.1", "e" * 64))


@pytest.fixture(autouse=True)
def no_machine_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_words: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.mark.parametrize("word", ["tower", "Attic-2", "under_stairs"])
def test_a_bare_word_may_be_a_donors_name(word: str) -> None:
    assert named.is_name(word)


@pytest.mark.parametrize("word", ["localhost", "192.168.7.2", "tower:10810", "tower.lan", "[::1]", "127", "-x", ""])
def test_what_has_a_port_a_dot_or_a_colon_is_an_address(word: str) -> None:
    assert not named.is_name(word)


def test_the_donor_that_announces_the_name_is_meant() -> None:
    assert named.address_of("attic", [], lambda: [TOWER, ATTIC]) == "192.0.2.8:10810"


def test_a_name_that_two_donors_announce_is_an_error_naming_both() -> None:
    other = Found("tower", "3" * 16, "192.0.2.9:10810", announced=TOWER.announced)
    with pytest.raises(UsageError) as caught:
        named.address_of("tower", [], lambda: [TOWER, ATTIC, other])
    assert caught.value.message == "2 donors announce the name 'tower': 192.0.2.7:10810, 192.0.2.9:10810"
    assert caught.value.hint == "give the address of one: ghostbox donor add 192.0.2.7:10810"


def test_a_name_that_nobody_announces_is_not_found() -> None:
    with pytest.raises(
        NotFound, match="no donor on the network announces the name 'cellar', and no machine has it"
    ) as e:
        named.address_of("cellar", [], lambda: [TOWER])
    assert "an address always works: ghostbox donor add" in str(e.value.hint)


def test_a_machines_name_is_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> NoReturn:
        raise GhostboxError("cannot ask for donors by mDNS: no")

    with pytest.raises(GhostboxError, match="cannot ask for donors by mDNS"):
        named.address_of("cellar", [], fails)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_words: [])
    assert named.address_of("cellar", [], lambda: [TOWER]) == "cellar"
    assert named.address_of("cellar", [], fails) == "cellar"


def test_one_that_is_not_what_it_seems_or_does_not_answer_is_not_asked() -> None:
    imitated = Found("tower", "1" * 16, "192.0.2.7:10810", problem="it calls itself 'tower'", hint="look at it")
    with pytest.raises(Refused, match="donor 'tower' at 192.0.2.7:10810: it calls itself 'tower'"):
        named.address_of("tower", [], lambda: [imitated])
    silent = Found("tower", "1" * 16, "192.0.2.7:10810", unreached="connection refused")
    with pytest.raises(NoAnswer, match="donor 'tower' at 192.0.2.7:10810 announces itself, and does not answer"):
        named.address_of("tower", [], lambda: [silent])
