# SPDX-License-Identifier: MIT
"""What a donor announces, and what a host accepts of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import ServiceInfo

from ghostbox.discovery import browse, record
from ghostbox.discovery.interfaces import Interface, Kind
from ghostbox.discovery.record import SERVICE, Announced

TOWER = Announced("tower.lan", "0123456789abcdef", "0.2.0", "ab" * 32)


def as_text(properties: Mapping[str, str | bytes]) -> bytes:
    return ServiceInfo(SERVICE, f"x.{SERVICE}", properties=dict(properties)).text


def text_with(**changed: str | bytes) -> bytes:
    return as_text({**TOWER.properties(), **changed})


def interface(name: str = "eth0", index: int = 2) -> Interface:
    addresses = ("192.168.7.5", f"fe80::5%{name}")
    networks = (ipaddress.ip_interface("192.168.7.5/24"), ipaddress.ip_interface("fe80::5/64"))
    return Interface(name, index, Kind.ETHERNET, 1000, addresses, networks, True, True, True, True, "")


@pytest.mark.parametrize("said", [TOWER, Announced("attic", "0" * 16, "0.1.0")])
def test_what_is_announced_is_read_as_it_was_meant(said: Announced) -> None:
    assert record.parse(as_text(said.properties())) == said


def test_nothing_is_announced_but_what_finds_the_donor() -> None:
    assert set(TOWER.properties()) == {"txtvers", "name", "id", "version", "fingerprint"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": "tower\x1b[31m"}, "its name has a wrong form"),
        ({"name": "../../etc/passwd"}, "its name has a wrong form"),
        ({"name": "[bold]tower"}, "its name has a wrong form"),
        ({"name": "tower\x00"}, "its name has a wrong form"),
        ({"name": b"\xff\xfe"}, "its name has a wrong form"),
        ({"name": "t" * 64}, "its name has a wrong form"),
        ({"name": "tower\n"}, "its name has a wrong form"),
        ({"name": ""}, "its name has a wrong form"),
        ({"id": "0123"}, "its id has a wrong form"),
        ({"version": "0.2; rm -rf /"}, "its version has a wrong form"),
        ({"fingerprint": "none"}, "its fingerprint has a wrong form"),
        ({"txtvers": "2"}, "it is of a newer form"),
    ],
)
def test_an_announcement_of_another_form_is_refused_without_repeating_it(
    changed: dict[str, str | bytes], why: str
) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        record.parse(text_with(**changed))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["txtvers", "name", "id", "version"])
def test_an_announcement_without_a_key_is_refused(key: str) -> None:
    rest = {name: value for name, value in TOWER.properties().items() if name != key}
    with pytest.raises(ValueError, match=f"it has no {key}"):
        record.parse(as_text(rest))


def test_a_long_announcement_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(ValueError, match="it is longer than 1300 bytes"):
        record.parse(text_with() + b"\x01a" * 5000)


def test_unknown_keys_are_ignored_and_the_first_of_two_values_counts() -> None:
    said = as_text(TOWER.properties()) + b"\x0aname=other" + b"\x07NEW=key" + b"\x04name"
    assert record.parse(said) == TOWER


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        said = record.parse(text)
    except ValueError as err:
        assert str(err).isprintable()
    else:
        assert record.parse(as_text(said.properties())) == said


def test_announced_addresses_outside_the_networks_that_were_asked_are_not_used() -> None:
    announced = ["192.168.7.2", "10.0.0.1", "127.0.0.1", "224.0.0.251", "0.0.0.0", "::1", "2001:db8::1"]
    found = browse.heard("tower", 10810, announced, text_with(), [interface()])
    assert [str(each) for each in found.addresses] == ["192.168.7.2:10810"]
    assert found.elsewhere == ("10.0.0.1", "127.0.0.1", "224.0.0.251", "0.0.0.0", "::1", "2001:db8::1")


@pytest.mark.parametrize("zone", ["%2", "%eth0"])
def test_a_link_local_address_gets_the_name_of_its_interface(zone: str) -> None:
    both = [interface(), interface("eth1", 3)]
    found = browse.heard("tower", 10810, [f"fe80::7{zone}"], text_with(), both)
    assert [str(each) for each in found.addresses] == ["[fe80::7%eth0]:10810"]


def test_a_link_local_address_without_a_zone_is_looked_for_on_each_interface_that_was_asked() -> None:
    both = [interface(), interface("eth1", 3)]
    found = browse.heard("tower", 10810, ["fe80::7"], text_with(), both)
    assert [str(each) for each in found.addresses] == ["[fe80::7%eth0]:10810", "[fe80::7%eth1]:10810"]


def test_the_number_of_addresses_is_bounded() -> None:
    many = [f"192.168.7.{last}" for last in range(1, 200)]
    assert len(browse.heard("tower", 10810, many, text_with(), [interface()]).addresses) == 8
