# SPDX-License-Identifier: MIT
"""Hosts find donors by real multicast DNS between namespaces, and say what they did not find, and why."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ghostbox
from ghostbox.discovery.record import SERVICE, Announced
from ghostbox.system.processes import wait_until
from helpers import announcer
from helpers.donor import RunningDonor, donor_environment, running_donor
from helpers.lan import LanMachine, lan
from helpers.netns import INSECURE
from helpers.secure_host import create_token

# A donor that is not heard in this time (the machine is busy) is asked for again: see `found`.
TIMEOUT = "1s"


@dataclass(frozen=True)
class Scanned:
    """Holds what a scan printed: its JSON, what stood on stderr, and its exit code."""

    found: dict[str, Any]
    stderr: str
    code: int

    def donors(self) -> list[dict[str, Any]]:
        return list(self.found["donors"])

    def interface(self, name: str) -> dict[str, Any]:
        return next(each for each in self.found["interfaces"] if each["name"] == name)


def cli(tmp_path: Path, machine: LanMachine, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``ghostbox`` on a machine, with a state directory of the machine's own."""
    directory = tmp_path / machine.namespace
    argv = [*machine.prefix, sys.executable, "-m", "ghostbox", *words]
    env = donor_environment(directory, directory / "run", INSECURE)
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)


def scan(tmp_path: Path, machine: LanMachine, *words: str) -> Scanned:
    done = cli(tmp_path, machine, "donor", "scan", "--json", "--timeout", TIMEOUT, *words)
    assert "internal error" not in done.stderr, done.stderr
    return Scanned(json.loads(done.stdout), " ".join(done.stderr.split()), done.returncode)


def found(tmp_path: Path, machine: LanMachine, *words: str, count: int = 1) -> Scanned:
    """Scan until so many donors are found: at first they may be on their way to announce themselves."""
    seen: list[Scanned] = []

    def there() -> bool:
        seen.append(scan(tmp_path, machine, *words))
        return len(seen[-1].donors()) == count

    wait_until(there, timeout_s=60, what=f"{count} donors")
    return seen[-1]


@contextlib.contextmanager
def program(machine: LanMachine, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program on a machine until the end of the block, once it has printed its first line."""
    env = {**os.environ, "PYTHONPATH": str(Path(ghostbox.__file__).parents[1])}
    words = [*machine.prefix, sys.executable, *argv]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            next_line(process)
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str], timeout_s: float = 30.0) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], timeout_s)[0], "the program prints nothing"
    return process.stdout.readline().strip()


def as_text(said: dict[str, bytes]) -> bytes:
    pairs = [key.encode() + b"=" + value for key, value in said.items()]
    return b"".join(bytes([len(each)]) + each for each in pairs)


def said_by(donor: str, **changed: bytes) -> bytes:
    properties = Announced(donor, "0123456789abcdef", "0.2.0").properties()
    return as_text({**{key: value.encode() for key, value in properties.items()}, **changed})


def announcing(
    machine: LanMachine, instance: bytes, text: bytes, *addresses: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    words = (machine.address, "10810", instance.hex(), text.hex(), *addresses)
    return program(machine, announcer.__file__, *words)


@dataclass(frozen=True)
class Network:
    """Is a donor ``cellar`` on a machine of its own, a host ``here``, and an ``enemy``, who may say anything."""

    donor: RunningDonor
    here: LanMachine
    enemy: LanMachine


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    place = tmp_path_factory.mktemp("network")
    with (
        lan(3) as (far, here, enemy),
        running_donor(place, name="cellar", prefix=far.prefix, bind=far.address, insecure="") as donor,
    ):
        yield Network(donor, here, enemy)


def test_a_donor_is_found_with_what_a_host_needs_to_know_of_it(tmp_path: Path, network: Network) -> None:
    scanned = found(tmp_path, network.here)
    (row,) = scanned.donors()
    assert (row["name"], row["address"], row["announced"]) == ("cellar", network.donor.address, True)
    assert (row["version"], row["state"], row["paired"]) == (ghostbox.__version__, "not encrypted", False)
    assert row["round_trip_us"] > 0
    assert row["free_bytes"] == 64 << 20
    assert (row["problem"], scanned.code) == (None, 0)
    assert scanned.interface("eth0")["asked"] is True
    assert scanned.interface("lo")["why_not"] == "only this machine is on it"


def test_a_donor_that_pairs_shows_its_certificate_and_notes_no_refusal(tmp_path: Path) -> None:
    with lan(2) as (far, here), running_donor(tmp_path, name="tower", prefix=far.prefix, bind=far.address) as donor:
        (row,) = found(tmp_path, here).donors()
        certificate = ssl.PEM_cert_to_DER_cert((donor.state_dir / "certificate.pem").read_text())
        assert row["fingerprint"] == hashlib.sha256(certificate).hexdigest()
        assert (row["state"], row["paired"], row["free_bytes"]) == ("not paired", False, None)
        assert (row["version"], row["problem"]) == (ghostbox.__version__, None)
        shown = cli(tmp_path, here, "donor", "scan", "--timeout", TIMEOUT).stdout
        assert "pair first" in shown or "tower" not in shown
        argv = [sys.executable, "-m", "ghostbox", "memserver", "audit", "--name", "tower", "--json"]
        log = subprocess.run(argv, env=donor.env, capture_output=True, text=True, check=True).stdout
        assert "request-refused" not in log


def test_a_paired_donor_is_known_and_one_that_goes_by_its_name_is_named(tmp_path: Path) -> None:
    with (
        lan(3) as (far, here, enemy),
        running_donor(tmp_path, name="tower", prefix=far.prefix, bind=far.address) as donor,
    ):
        paired = cli(tmp_path, here, "donor", "add", create_token(donor))
        assert paired.returncode == 0, paired.stderr
        (row,) = found(tmp_path, here).donors()
        assert (row["state"], row["paired"], row["free_bytes"]) == ("paired", True, 64 << 20)
        theirs = tmp_path / "enemy"
        theirs.mkdir()
        with running_donor(theirs, name="tower", prefix=enemy.prefix, bind=enemy.address) as other:
            rows = {each["address"]: each for each in found(tmp_path, here, count=2).donors()}
            assert (rows[donor.address]["state"], rows[donor.address]["problem"]) == ("paired", None)
            assert rows[other.address]["state"] == "do not trust"
            assert rows[other.address]["problem"].startswith("it calls itself 'tower', which this host is paired with")


def test_people_see_a_table_of_interfaces_and_one_of_donors(tmp_path: Path, network: Network) -> None:
    address = network.donor.address
    done = cli(tmp_path, network.here, "donor", "scan", address, "--interface", "eth0", "--timeout", TIMEOUT)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["eth0", "veth", network.here.address, "yes"] in lines
    assert next(line for line in lines if line[:1] == ["cellar"])[1] == address


@pytest.mark.parametrize("bind", ["0.0.0.0", "::"])
def test_a_donor_on_all_addresses_is_one_row_with_each_of_them(tmp_path: Path, bind: str) -> None:
    with lan(2) as (far, here):
        for each, last in ((far, 1), (here, 2)):
            each.ip("addr", "add", f"198.51.100.{last}/24", "dev", "eth0")
            each.ip("addr", "add", f"2001:db8::{last}/64", "dev", "eth0")
        with running_donor(tmp_path, name="tower", prefix=far.prefix, bind=bind, insecure="") as donor:
            port = donor.address.rpartition(":")[2]
            four, six = [far.address, "198.51.100.1"], ["[2001:db8::1]", f"[{far.link_local()}%eth0]"]
            hosts = four if bind == "0.0.0.0" else six
            (row,) = found(tmp_path, here).donors()
            assert {row["address"], *row["also"]} == {f"{host}:{port}" for host in hosts}


def test_a_donor_on_loopback_or_without_announcement_is_not_announced(tmp_path: Path) -> None:
    with (
        lan(2) as (far, here),
        running_donor(tmp_path, name="near", prefix=far.prefix) as near,
        running_donor(
            tmp_path, name="hidden", prefix=far.prefix, bind=far.address, insecure="", no_announce=""
        ) as hidden,
    ):
        nothing = scan(tmp_path, here)
        assert (nothing.donors(), nothing.code) == ([], 4)
        assert "no donor was found on eth0" in nothing.stderr
        assert "a firewall on either machine may drop UDP port 5353" in nothing.stderr
        assert [row["name"] for row in found(tmp_path, here, hidden.address).donors()] == ["hidden"]
        assert [row["name"] for row in found(tmp_path, far, near.address).donors()] == ["near"]


def test_where_multicast_is_dropped_an_address_finds_the_donor(tmp_path: Path) -> None:
    with (
        lan(2) as (far, here),
        running_donor(tmp_path, name="tower", prefix=far.prefix, bind=far.address, insecure="") as donor,
    ):
        here.drop_multicast()
        far.drop_multicast()
        nothing = scan(tmp_path, here)
        assert (nothing.donors(), nothing.code) == ([], 4)
        assert "give its address, which needs no multicast: ghostbox donor scan" in nothing.stderr
        (row,) = found(tmp_path, here, donor.address, "--insecure").donors()
        assert (row["name"], row["announced"]) == ("tower", False)


def test_a_donor_on_a_link_local_address_is_found_with_the_zone_and_by_it(tmp_path: Path) -> None:
    with lan(2) as (far, here):
        bind = f"{far.link_local()}%eth0"
        with running_donor(tmp_path, prefix=far.prefix, bind=bind, insecure="", control_port="10810"):
            (row,) = found(tmp_path, here).donors()
            assert (row["address"], row["announced"]) == (f"[{bind}]:10810", True)
            here.drop_multicast()  # neighbours are looked for by multicast, too: the address is known already
            (row,) = found(tmp_path, here, bind).donors()
            assert (row["address"], row["round_trip_us"] > 0) == (f"[{bind}]:10810", True)


def test_a_donor_that_is_restarted_at_another_port_is_found_there_alone(tmp_path: Path) -> None:
    with lan(2) as (far, here):
        options: dict[str, Any] = {"bind": far.address, "insecure": "", "control_port": "10810"}
        with running_donor(tmp_path, name="tower", prefix=far.prefix, **options) as donor:
            assert [row["address"] for row in found(tmp_path, here).donors()] == [f"{far.address}:10810"]
            donor.kill_control_plane()
            donor.restart(**{"control-port": "10820"})
            (row,) = found(tmp_path, here).donors()
            assert (row["name"], row["address"], row["problem"]) == ("tower", f"{far.address}:10820", None)


WATCH = f"""
import asyncio
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

def changed(zeroconf, service_type, name, state_change):
    print(state_change.name, name, flush=True)

async def main():
    zeroconf = AsyncZeroconf()
    browser = AsyncServiceBrowser(zeroconf.zeroconf, {SERVICE!r}, handlers=[changed])
    print("listening", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_donor_that_ends_says_goodbye_and_one_that_follows_has_the_same_name(tmp_path: Path) -> None:
    with lan(2) as (far, here), program(here, "-c", WATCH) as watcher:
        for _ in range(2):
            with running_donor(tmp_path, name="tower", prefix=far.prefix, bind=far.address, insecure="") as donor:
                assert next_line(watcher) == f"Added tower.{SERVICE}"
                donor.interrupt(signal.SIGTERM)
                assert donor.wait() == 0
                assert next_line(watcher) == f"Removed tower.{SERVICE}"


def test_a_donor_whose_address_comes_later_is_announced_then(tmp_path: Path) -> None:
    with lan(2) as (far, here), program(here, "-c", WATCH) as watcher:
        far.ip("addr", "flush", "dev", "eth0", "scope", "global")
        with running_donor(tmp_path, name="tower", prefix=far.prefix, bind="0.0.0.0", insecure="") as donor:
            far.ip("addr", "add", f"{far.address}/24", "dev", "eth0")
            assert next_line(watcher) == f"Added tower.{SERVICE}"
            assert donor.process.poll() is None


SCAN_AND_COUNT = """
import threading, os
from ghostbox.discovery.scan import scan
before = set(os.listdir("/proc/self/fd"))
print("ready", flush=True)
scan([], ["192.0.2.10"], [], 0.5)
print(threading.active_count(), set(os.listdir("/proc/self/fd")) - before, flush=True)
"""


def test_a_scan_leaves_no_thread_and_no_socket(tmp_path: Path) -> None:
    with lan(2) as (_, here), program(here, "-c", SCAN_AND_COUNT) as process:
        assert next_line(process) == "1 set()"


HOSTILE = {
    "escapes": (b"\x1b[2J\x1b]0;x\x07", said_by("tower")),
    "escapes in its text": (b"a", said_by("tower", name=b"\x1b[31mtower")),
    "NUL": (b"b\0c", said_by("tower", name=b"tow\0er")),
    "not UTF-8": (b"\xff\xfe\xfd", said_by("tower", name=b"\xff\xfe")),
    "long text": (b"d", said_by("tower") + (b"\xff" + b"x" * 255) * 40),
    "a path": (b"../../../etc", said_by("tower", name=b"../../etc/passwd")),
    "markup": (b"[red]tower[/red]", said_by("tower", name=b"[red]tower[/red]")),
    "a cut-off text": (b"e", said_by("tower")[:-3]),
    "nothing": (b"f", b""),
    "a long label": (b"g" * 63, said_by("tower", version=b"9" * 200)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_announcements_cannot_control_the_terminal_nor_hide_a_donor(
    tmp_path: Path, network: Network, what: str
) -> None:
    instance, text = HOSTILE[what]
    with announcing(network.enemy, instance, text):
        done = cli(tmp_path, network.here, "donor", "scan", network.donor.address, "--timeout", TIMEOUT)
        assert "internal error" not in done.stderr
        shown = done.stdout + done.stderr
        assert all(each.isprintable() or each == "\n" for each in shown)
        assert len(shown) < 4000
        assert any(line.split()[:1] == ["cellar"] for line in done.stdout.splitlines())


def test_an_announcement_leads_neither_to_this_host_nor_to_other_networks(tmp_path: Path) -> None:
    with lan(2) as (here, enemy), announcing(enemy, b"tower", said_by("tower"), "127.0.0.1", "198.51.100.9"):
        faults: list[dict[str, str]] = []

        def heard() -> bool:
            faults[:] = scan(tmp_path, here).found["faults"]
            return bool(faults)

        wait_until(heard, timeout_s=60, what="the announcement")
        (fault,) = faults
        assert fault["instance"] == "tower"
        assert "is in no network of the interfaces that were asked" in fault["why"]


def test_an_announced_donor_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with lan(2) as (here, enemy), announcing(enemy, b"tower", said_by("tower")):
        scanned = found(tmp_path, here)
        (row,) = scanned.donors()
        assert (row["state"], row["error"]) == ("no answer", "connection refused")
        assert f"'tower' at {enemy.address}:10810 does not answer: connection refused" in scanned.stderr


def test_two_donors_with_one_identity_are_named_with_what_to_do(tmp_path: Path) -> None:
    with lan(3) as (one, two, here), contextlib.ExitStack() as stack:
        first = running_donor(tmp_path, name="tower", prefix=one.prefix, bind=one.address, insecure="")
        stack.enter_context(first)
        state = Path("state/memservers/tower/identity.json")
        copy = tmp_path / "copy"
        (copy / state).parent.mkdir(parents=True)
        shutil.copy(tmp_path / state, copy / state)
        stack.enter_context(running_donor(copy, name="tower", prefix=two.prefix, bind=two.address, insecure=""))
        scanned = found(tmp_path, here, count=2)
        rows = scanned.donors()
        assert {row["address"].partition(":")[0] for row in rows} == {one.address, two.address}
        assert all(row["problem"].startswith("it has the same id as 'tower' at 192.0.2.") for row in rows)
        assert all("remove identity.json" in row["hint"] for row in rows)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--interface", "eth7"], 4, "this machine has no interface 'eth7'"),
        (["--interface", "lo"], 5, "nothing can be asked on interface lo: it carries no multicast"),
        (["--timeout", "2m"], 2, "--timeout is from 0.1 s to 60 s"),
        (["tower/attic"], 2, "is not the address of a donor"),
        (["192.0.2.99"], 4, "no donor was found on eth0"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path: Path, words: list[str], code: int, text: str) -> None:
    with lan(1) as (here,):
        done = cli(tmp_path, here, "donor", "scan", *words)
        assert (done.returncode, text in " ".join(done.stderr.split())) == (code, True), done.stderr


def test_an_address_that_does_not_answer_beside_one_that_does_ends_with_6(tmp_path: Path, network: Network) -> None:
    silent = f"{network.here.address}:9"
    scanned = found(tmp_path, network.here, silent, count=2)
    assert scanned.code == 6
    assert f"1 of 1 addresses do not answer: {silent}" in scanned.stderr


FIND = """
import json
from ghostbox.discovery import interfaces
found = interfaces.find()
print(json.dumps({each.name: [each.kind, interfaces.why_skipped(each, found), each.addresses] for each in found}))
"""


def test_interfaces_of_a_machine_are_told_apart(tmp_path: Path) -> None:
    with lan(1) as (here,):
        for words in ("br0 type bridge", "docker0 type bridge", "veth1 type veth peer name veth2"):
            here.ip("link", "add", *words.split())
        for mode in ("tun", "tap"):
            here.ip("tuntap", "add", "dev", f"{mode}0", "mode", mode)
        here.ip("link", "set", "veth1", "master", "br0")
        for name in ("br0", "docker0", "veth1", "tun0", "tap0"):
            here.ip("link", "set", name, "up")
        here.ip("addr", "add", "198.51.100.1/24", "dev", "br0", "label", "br0:1")
        env = donor_environment(tmp_path, tmp_path)
        done = subprocess.run([*here.prefix, sys.executable, "-c", FIND], env=env, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert found["lo"][:2] == ["loopback", "only this machine is on it"]
    assert found["eth0"][:2] == ["veth", ""]
    assert found["tun0"][:2] == ["vpn", "a VPN rarely carries multicast"]
    assert found["tap0"][:2] == ["tap", "it leads to a virtual machine of this machine"]
    assert found["br0"][:2] == ["bridge", "only virtual machines and containers of this machine are on it"]
    assert "198.51.100.1" in found["br0"][2]
    assert found["docker0"][:2] == ["docker", "only containers of this machine are on it"]
    assert found["veth1"][:2] == ["veth", "it is a part of br0"]
    assert found["veth2"][:2] == ["veth", "it is down"]
