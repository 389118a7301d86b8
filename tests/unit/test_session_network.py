# SPDX-License-Identifier: MIT
"""The guest's network rules are correct, and a guest with an address of its own is found there."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.config import NetworkChoice
from ghostbox.errors import ConfigError, Refused, UsageError
from ghostbox.paths import VmPaths
from ghostbox.plan.plan import NetworkPlan, check_sizes
from ghostbox.session import network
from ghostbox.session.record import THIS_HOST, Book, LeaseRecord, VmState, locked
from helpers.facts import RECORD

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
MAC = "52:54:00:aa:bb:cc"
LEASES = (
    LeaseRecord("192.0.2.7", "x", 5, "nbd://192.0.2.7:10899/x"),
    LeaseRecord(THIS_HOST, "y", 5, "nbd+unix:///y?socket=/run/y"),
)
RULES_OF_LEASES = ["* 10809", "* 10810", "192.0.2.7 10810", "192.0.2.7 10899", "192.0.2.8 7000"]
TABLE = """\
ci-info: | Device |  Up  |   Address   |      Mask     | Scope  |     Hw-Address    |
ci-info: |  ens3  | True |  192.0.2.44 | 255.255.255.0 | global | {mac} |
ci-info: |   lo   | True |  127.0.0.1  |   255.0.0.0   |  host  |         .         |
"""


@pytest.fixture
def files(tmp_path: Path) -> VmPaths:
    (tmp_path / "box").mkdir()
    return VmPaths(tmp_path / "box", tmp_path / "r")


def test_rules_name_the_donors_at_their_ports_and_the_usual_ports_everywhere(files: VmPaths) -> None:
    record = replace(RECORD, donors=("192.0.2.7", "192.0.2.8:7000"), leases=LEASES)
    assert network.write_rules(record, files)
    assert files.network_rules.read_text().splitlines() == RULES_OF_LEASES
    assert files.network_rules.stat().st_mode & 0o777 == 0o644
    assert not network.write_rules(record, files)


def test_donor_whose_name_is_not_known_now_keeps_its_last_addresses(files: VmPaths) -> None:
    network.write_rules(replace(RECORD, donors=("192.0.2.8:7000",), leases=()), files)
    assert network.write_rules(replace(RECORD, donors=("no-such.invalid:7000", "192.0.2.9:1"), leases=()), files)
    lines = files.network_rules.read_text().splitlines()
    assert lines == ["* 10809", "* 10810", "192.0.2.9 1", "192.0.2.8 7000"]


def test_a_name_is_closed_at_all_its_addresses(files: VmPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(None, None, None, None, (address, 0)) for address in ("192.0.2.1", "2001:db8::1", "fe80::1%eth0")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_words: found)
    network.write_rules(replace(RECORD, donors=("tower",), leases=()), files)
    assert files.network_rules.read_text().splitlines()[2:] == ["192.0.2.1 10810", "2001:db8::1 10810", "fe80::1 10810"]


@pytest.mark.parametrize("text", ["bridge:", "bridge:a b", "bridge:sixteen-letters-x", "libvirt:", "nat", "passt", ""])
def test_network_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a network") as caught:
        config.load({"vm.network": text or " "})
    assert caught.value.hint == "write user, bridge:NAME (such as bridge:br0) or libvirt:NAME"


def test_ports_cannot_be_forwarded_where_the_guest_has_an_address_of_its_own() -> None:
    with pytest.raises(UsageError, match="ports cannot be forwarded") as caught:
        check_sizes(config.load({"vm.network": "bridge:br0", "vm.ports": ["80:80"]}))
    assert caught.value.why == "there the guest has an address of its own, at which all its ports can be reached"


def test_bridge_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="there is no bridge named gb-none on this host") as caught:
        network.check(NetworkChoice("bridge", "gb-none"), "qemu:///system")
    assert caught.value.hint is not None
    assert "the bridges are: " in caught.value.hint


def test_interface_that_is_no_bridge_is_refused() -> None:
    with pytest.raises(Refused, match="there is no bridge named lo"):
        network.check(NetworkChoice("bridge", "lo"), "qemu:///system")


def test_user_is_warned_of_a_network_on_which_nothing_is_closed() -> None:
    plan = NetworkPlan("m", 1)
    assert network.notes(plan) == ()
    bridge = replace(plan, choice=NetworkChoice("bridge", "br0"))
    assert network.notes(bridge)[0].startswith("warning: on the network bridge:br0 the guest reaches this host and the")
    assert network.notes(replace(bridge, filter="x")) == (
        "note: on the network bridge:br0 the guest reaches this host, as any machine there does",
    )


def test_guest_is_found_by_what_it_says_on_its_console(files: VmPaths) -> None:
    record = replace(RECORD, network="bridge:br0", mac=MAC, state=VmState.RUNNING)
    book = Book(files)
    book.save(record)
    assert network.refresh(book) is None
    files.console_log.write_text(TABLE.format(mac="52:54:00:00:00:01"))
    assert network.refresh(book) is None
    files.console_log.write_text(TABLE.format(mac=MAC))
    assert network.refresh(book) == ("192.0.2.44", 22)
    assert Book(files).load() == book.record == replace(record, address="192.0.2.44")


def bridged(files: VmPaths) -> Book:
    """Return the book of a VM on a bridge, whose address the guest's console tells."""
    book = Book(files)
    book.save(replace(RECORD, network="bridge:br0", mac=MAC, state=VmState.RUNNING))
    files.console_log.write_text(TABLE.format(mac=MAC))
    return book


def test_what_another_command_recorded_while_the_address_was_looked_for_stays(files: VmPaths) -> None:
    book = bridged(files)
    other = Book(files)
    other.load()
    other.save(replace(other.record, drained=(), donors=("tower",), ssh_port=2345))
    assert network.refresh(book) == ("192.0.2.44", 22)
    assert Book(files).load() == replace(other.record, address="192.0.2.44")


def test_address_is_told_and_not_recorded_while_another_command_is_at_work(files: VmPaths) -> None:
    book = bridged(files)
    before = book.record
    with locked(files):
        assert network.refresh(book) == ("192.0.2.44", 22)
    assert Book(files).load() == before
    assert network.refresh(book) == ("192.0.2.44", 22)
    assert Book(files).load() == replace(before, address="192.0.2.44")


@pytest.mark.parametrize("change", ["down", "delete"])
def test_address_of_a_vm_that_is_over_is_not_recorded(files: VmPaths, change: str) -> None:
    book = bridged(files)
    if change == "delete":
        files.record.unlink()
    else:
        stopped = Book(files)
        stopped.load()
        stopped.save(replace(stopped.record, state=VmState.STOPPED))
    before = Book(files).load()
    network.refresh(book)
    assert Book(files).load() == before


def test_guest_on_the_user_network_answers_at_a_port_of_this_host(files: VmPaths) -> None:
    book = Book(files)
    book.save(RECORD)
    assert network.refresh(book) == ("127.0.0.1", 2222)


def test_flags_reach_the_configuration(quick_cli: Cli) -> None:
    for command in ("up", "plan", "set"):
        assert quick_cli(command, "--no-host-access", "--help").returncode == 0
        done = quick_cli(
            command, "box", "--network", "nat", "--host-access", "--add-disk", "1G", "--share", "/x", "--user", "ana"
        )
        assert "error: --network: 'nat' is not a network" in done.stderr
        assert done.returncode == 2
