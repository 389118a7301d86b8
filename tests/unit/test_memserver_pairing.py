# SPDX-License-Identifier: MIT
"""How often a host may try to pair, which addresses a token has, and whom a word of the owner means."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from ghostbox.donors.models import ClientFields, TokenRequest
from ghostbox.errors import NotFound, UsageError
from ghostbox.memserver import owner
from ghostbox.memserver.pairing import ALL, EACH, Attempts
from ghostbox.memserver.secure import addresses


class Seconds:
    """Is a clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_address_has_some_tries_and_gets_one_more_with_the_time() -> None:
    clock = Seconds()
    attempts = Attempts(clock)
    tried = [attempts.allows(f"192.0.2.7:{port}") for port in range(EACH.burst + 2)]
    assert tried == [True] * EACH.burst + [False] * 2
    assert attempts.allows("192.0.2.8:1")
    clock.now += EACH.every_s
    assert [attempts.allows("192.0.2.7:1"), attempts.allows("192.0.2.7:1")] == [True, False]
    clock.now += EACH.every_s * EACH.burst * 5
    assert [attempts.allows("192.0.2.7:1") for _ in range(EACH.burst + 1)] == [True] * EACH.burst + [False]


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    attempts = Attempts(Seconds())
    tried = [attempts.allows(f"[2001:db8::{host:x}]:1") for host in range(1, EACH.burst + 2)]
    assert tried[-1] is False
    assert attempts.allows("[2001:db8:0:1::1]:1")
    assert attempts.allows("[fe80::1%eth0]:1")


def test_all_addresses_together_have_a_limit_and_memory_for_them_has_one_too() -> None:
    attempts = Attempts(Seconds())
    tried = [attempts.allows(f"10.0.{n // 250}.{n % 250}:1") for n in range(2000)]
    assert sum(tried) == ALL.burst
    assert len(attempts._of_each) == 1024


@pytest.mark.parametrize("limit", [4095, 2**62 + 1, 2**63, 1.5])
def test_a_token_has_no_limit_that_no_lease_could_have(limit: float) -> None:
    """The file of clients cannot hold 2^63."""
    with pytest.raises(ValidationError, match="max_memory_bytes"):
        TokenRequest.model_validate({"max_memory_bytes": limit})
    assert TokenRequest.model_validate({"max_memory_bytes": 2**62}).max_memory_bytes == 2**62


def test_a_token_has_the_address_that_the_donor_listens_on() -> None:
    assert addresses("192.0.2.7", 10810) == ("192.0.2.7:10810",)
    assert addresses("2001:db8::1", 7) == ("[2001:db8::1]:7",)
    assert addresses("::1", 7) == ("[::1]:7",)


@pytest.mark.parametrize(("bind", "version"), [("0.0.0.0", 4), ("::", 6)])
def test_a_token_of_a_donor_that_listens_everywhere_has_this_machines_addresses(bind: str, version: int) -> None:
    found = addresses(bind, 7)
    hosts = [ipaddress.ip_address(each.rpartition(":")[0].strip("[]")) for each in found]
    assert found
    assert all(host.version == version and not host.is_link_local for host in hosts)
    assert not any(host.is_loopback for host in hosts) or len(hosts) == 1


def client(number: int, host: str, state: str = "active") -> ClientFields:
    now = datetime.now(UTC)
    return ClientFields(
        id=f"{number:016x}", host=host, host_id="0" * 16, state=state, role="user", max_memory_bytes=None, leases=0,
        leased_bytes=0, paired_at=now, seen_at=now, address=None,
    )  # fmt: skip


def test_a_word_means_an_id_or_the_one_host_of_a_name_that_is_not_revoked() -> None:
    known = [client(1, "tower", "revoked"), client(2, "tower"), client(3, "attic"), client(4, "attic")]
    assert owner.meant(known, "tower").id == known[1].id
    assert owner.meant(known, known[0].id) is known[0]
    with pytest.raises(UsageError, match="2 clients are called 'attic'"):
        owner.meant(known, "attic")
    with pytest.raises(NotFound, match="no host 'x' is paired with this donor"):
        owner.meant([], "x")
