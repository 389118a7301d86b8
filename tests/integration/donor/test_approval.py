# SPDX-License-Identifier: MIT
"""Hosts are paired without a token: both screens show the same words, and the donor's owner decides. Real commands."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors.client import host_name
from ghostbox.donors.request_models import PairingRequestFields
from ghostbox.memserver import audit
from ghostbox.memserver.owner import Owner
from ghostbox.system.processes import wait_until
from ghostbox.units import MIB
from helpers import paired
from helpers.donor import RunningDonor, donor_environment, running_donor
from helpers.lan import lan
from helpers.secure_host import Host
from helpers.tls_server import Answer, Seen, TlsServer, tls_server

pytestmark = pytest.mark.timeout(240)
SHOWN = re.compile(r"this host asks donor \S+ to be paired, and shows: (\w+ \w+ \w+ \w+)\n")


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), name="donor", secure="") as running:
        yield running


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def memserver(donor: RunningDonor, quick_cli: Cli) -> Cli:
    """Return what runs a command of the donor's owner."""
    return lambda *words: quick_cli("memserver", *words, "--name", "donor", env=donor.env)


@dataclass(frozen=True)
class Waiting:
    """Is `donor add` of a host that has shown its words and waits for the donor's owner."""

    process: subprocess.Popen[str]
    words: str

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return exit code, stdout, and the rest of stderr on one line."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, " ".join(err.split())


@contextlib.contextmanager
def asking(host: Host, address: str, *words: str) -> Iterator[Waiting]:
    """Run `donor add` until the end of the block; it has shown its words."""
    argv = [sys.executable, "-m", "ghostbox", "donor", "add", address, "--yes", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env=host.env, stdin=subprocess.DEVNULL, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            first = process.stderr.readline()
            found = SHOWN.fullmatch(first)
            assert found is not None, first + process.stderr.read()
            yield Waiting(process, found[1])
        finally:
            process.kill()


def door(donor: RunningDonor) -> Owner:
    return Owner(donor.control_socket.with_name("owner.sock"), donor.address)


def asking_hosts(donor: RunningDonor, state: str = "pending") -> list[PairingRequestFields]:
    return [each for each in door(donor).requests() if each.state == state]


def events(donor: RunningDonor) -> list[tuple[str, str | None, str | None]]:
    return [(entry.event, entry.host, entry.reason) for entry in audit.read(audit.path(donor.state_dir))]


def test_both_screens_show_the_same_words_and_what_the_owner_grants_is_what_the_host_has(
    donor: RunningDonor, host: Host, memserver: Cli
) -> None:
    with asking(host, donor.address, "--json") as waiting:
        [pending] = json.loads(memserver("clients", "--json").stdout)
        assert (pending["code"], pending["host"], pending["state"]) == (waiting.words, host_name(), "pending")
        assert (
            f"asks to be paired. Only if its screen shows: {waiting.words} ghostbox memserver approve {pending['id']}"
            in (donor.stderr())
        )
        table = memserver("clients").stdout
        assert re.search(rf"{pending['id']} +pending +{waiting.words} +\d+\.\d s ago +127\.0\.0\.1:\d+", table), table
        silent = memserver("approve", host_name())
        assert silent.returncode == 2
        assert f"error: do both screens show: {waiting.words}? cannot be asked without a terminal" in silent.stderr
        wrong = memserver("approve", pending["id"], "--code", "zoo zoo zoo zoo")
        assert wrong.returncode == 5
        assert f"error: the words do not match: the request of {host_name()} has: {waiting.words}\n" in wrong.stderr
        assert f"fix: if the host's screen shows other words: ghostbox memserver deny {pending['id']}" in wrong.stderr
        typed = waiting.words.upper().replace(" ", "-")
        given = ("--code", typed, "--role", "guest", "--max-memory", "8M", "--json")
        made = memserver("approve", host_name(), *given)
        assert json.loads(made.stdout)["client"], made.stderr
        code, out, err = waiting.end()
    assert code == 0, err
    assert (json.loads(out)["paired"], json.loads(out)["channel"]) == (True, "tls")
    [kept] = host.pairings()
    assert (kept["max_memory_bytes"], kept["role"], kept["addresses"]) == (8 * MIB, "guest", [donor.address])
    assert asking_hosts(donor) == []
    said = [event for event in events(donor) if event[0].startswith("pairing-")]
    about = f"request {pending['id']}, code {waiting.words}"
    assert said[-2:] == [
        ("pairing-asked", host_name(), about),
        ("pairing-approved", host_name(), f"{about}, role guest, at most 8 MiB"),
    ]


def test_a_denied_host_is_told_so(donor: RunningDonor, host: Host, memserver: Cli) -> None:
    with asking(host, donor.address) as waiting:
        done = memserver("deny", host_name(), "--output", "table")
        assert done.stdout == f"{host_name()} is denied: {waiting.words}\n", done.stderr
        code, _, err = waiting.end()
    assert code == 1
    assert f"error: the owner of donor {donor.address} has denied this host" in err
    assert events(donor)[-1][0] == "pairing-denied"
    assert asking_hosts(donor, "denied")[-1].code == waiting.words
    nobody = memserver("deny", host_name())
    assert nobody.returncode == 4
    assert f"error: no host '{host_name()}' asks to be paired with this donor" in nobody.stderr


def test_a_command_that_was_killed_goes_on_with_the_same_words(
    donor: RunningDonor, host: Host, memserver: Cli, quick_cli: Cli
) -> None:
    with asking(host, donor.address) as killed:
        pass
    [pending] = asking_hosts(donor)
    done = memserver("approve", pending.id, "--yes")
    assert f"is paired: {killed.words}; role user\n" in done.stdout, done.stderr
    done = quick_cli("donor", "add", donor.address, "--yes", env=host.env)
    assert (done.returncode, done.stdout.startswith("paired: donor 'donor'")) == (0, True), done.stderr
    assert f"shows: {killed.words}\n" in done.stderr


def test_a_host_that_gives_up_takes_its_request_back_at_once(
    donor: RunningDonor, host: Host, memserver: Cli, quick_cli: Cli
) -> None:
    late = quick_cli("donor", "add", donor.address, "--yes", "--timeout", "100ms", env=host.env)
    assert late.returncode == 124
    said = " ".join(late.stderr.split())
    assert f"error: the owner of donor {donor.address} has not decided within 0.1 s" in said
    assert "the request is taken back" in said
    assert f"ask again: ghostbox donor add {donor.address}" in said
    assert asking_hosts(donor) == []
    nobody = memserver("approve", host_name(), "--yes")
    assert nobody.returncode == 4
    assert f"error: no host '{host_name()}' asks to be paired with this donor" in nobody.stderr
    assert events(donor)[-1][0] == "pairing-withdrawn"
    with asking(host, donor.address) as waiting:
        assert [each.code for each in asking_hosts(donor)] == [waiting.words]
        assert f"shows: {waiting.words}\n" in late.stderr
        waiting.process.send_signal(signal.SIGINT)
        code, _, err = waiting.end()
    assert code == 130
    assert f"error: interrupted: the request is taken back at donor {donor.address}" in err
    assert asking_hosts(donor) == []


def test_the_hosts_user_is_asked_too_and_no_means_no(donor: RunningDonor, host: Host, quick_cli: Cli) -> None:
    done = quick_cli("donor", "add", donor.address, env=host.env)
    assert done.returncode == 2
    assert "error: whether both screens show the same words cannot be asked without a terminal" in done.stderr
    before = len(door(donor).clients())
    leader, follower = pty.openpty()
    argv = [sys.executable, "-m", "ghostbox", "donor", "add", donor.address]
    with subprocess.Popen(argv, env=host.env, stdin=follower, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = SHOWN.fullmatch(process.stderr.readline())
        assert found is not None
        [pending] = asking_hosts(donor)
        door(donor).approve(pending.id, None, "user")
        assert len(door(donor).clients()) == 1 + before
        os.write(leader, b"n\n")
        said = process.stderr.read()
    os.close(leader)
    os.close(follower)
    assert process.returncode == 5
    assert f"do both screens show: {found[1]}? [y/N]:" in said
    assert f"the words differ: this host is not paired with donor {donor.address}" in " ".join(said.split())
    assert not (host.root / "state" / "pairings.json").exists()
    assert len(door(donor).clients()) == before, "the donor is not paired with a host that does not want it"
    assert events(donor)[-1][0] == "pairing-ended"


# --- somebody is between ---


def relaying(donor: RunningDonor) -> dict[str, Answer]:
    """Return answers that are those of a donor, to whom each request is passed on as it is."""

    def passed_on(seen: Seen) -> tuple[int, Any]:
        headers = {} if seen.authorization is None else {"Authorization": seen.authorization}
        with paired.connect(donor.address, headers) as http:
            answer = http.request(seen.method, seen.path, json=json.loads(seen.body) if seen.body else None)
        return answer.status_code, answer.json() if answer.content else None

    own = tuple(f"{method} /v1/pairing-requests/self" for method in ("PUT", "GET", "DELETE"))
    routes = ("POST /v1/pairing-requests", *own)
    return {**dict.fromkeys(routes, passed_on), "GET /v1/version": passed_on}


@contextlib.contextmanager
def relay(donor: RunningDonor, directory: Path) -> Iterator[TlsServer]:
    with tls_server(directory, relaying(donor)) as running:
        yield running


def test_behind_a_relay_with_another_certificate_the_screens_show_different_words(
    donor: RunningDonor, host: Host, tmp_path: Path, memserver: Cli
) -> None:
    with relay(donor, tmp_path) as middle, asking(host, middle.address) as waiting:
        [pending] = asking_hosts(donor)
        assert pending.code != waiting.words
        refused = memserver("approve", pending.id, "--code", waiting.words)
        assert refused.returncode == 5
        assert "error: the words do not match" in refused.stderr
        assert "somebody may be between this donor and the host" in refused.stderr
        door(donor).deny(pending.id)
        code, _, err = waiting.end()
        assert (code, "has denied this host" in err) == (1, True)
    assert not any(waiting.words in f"{each.body}" for each in middle.requests), "the words go over no wire"


def test_whoever_is_between_and_approves_by_itself_gets_a_pairing_only_from_a_user_who_says_yes(
    host: Host, tmp_path: Path
) -> None:
    answer = {"client": "0" * 16, "donor": "d", "name": "attic", "machine": "m", "version": "1", "role": "user"}
    approved = (200, {"state": "approved", "pairing": {**answer, "max_memory_bytes": None}})
    asked = (201, {"id": "1" * 16, "nonce": "2" * 64})
    routes = {"PUT /v1/pairing-requests/self": approved, "GET /v1/pairing-requests/self": approved}
    with tls_server(tmp_path, {"POST /v1/pairing-requests": asked, **routes}) as liar:
        code, _, err = host.cli("donor", "add", liar.address)
    assert code == 2
    assert "cannot be asked without a terminal" in err
    assert not (host.root / "state" / "pairings.json").exists()


# --- donors that trust their network, and names ---


def test_a_donor_that_trusts_its_network_is_added_by_its_name_and_says_what_it_does(tmp_path: Path) -> None:
    with (
        lan(2) as (far, here),
        running_donor(
            tmp_path, name="tower", prefix=far.prefix, bind=far.address, trust_network="", control_port="10810"
        ) as trusting,
    ):
        assert "--trust-network: every host that asks to be paired is paired, and nobody is asked" in trusting.stderr()
        directory = tmp_path / here.namespace
        env = donor_environment(directory, directory / "run")
        ends: list[subprocess.CompletedProcess[str]] = []

        def is_added() -> bool:  # it may be on its way to announce itself
            argv = [*here.prefix, sys.executable, "-m", "ghostbox", "donor", "add", "tower", "--yes", "--json"]
            ends.append(subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60))
            return ends[-1].returncode != 4

        wait_until(is_added, timeout_s=60, what="the announcement")
        assert ends[-1].returncode == 0, ends[-1].stderr
        assert json.loads(ends[-1].stdout)["donor"]["address"] == f"{far.address}:10810"
        found = re.search(r"and shows: (\w+ \w+ \w+ \w+)\n", ends[-1].stderr)
        assert found is not None
        assert f"is paired by --trust-network, and shows: {found[1]}" in trusting.stderr()
        said = events(trusting)
        assert ("pairing-approved", host_name(), f"by --trust-network, code {found[1]}") in said
        assert any(event == "started" and "--trust-network: every host" in str(why) for event, _, why in said)


@pytest.mark.parametrize("words", [("--insecure",), ()])
def test_trust_without_pairing_is_a_contradiction(quick_cli: Cli, words: tuple[str, ...]) -> None:
    done = quick_cli("memserver", "--trust-network", "--size", "8M", "--reserve", "0", *words)
    assert done.returncode == 2
    assert "error: --trust-network pairs hosts, and this memserver lends without pairing" in done.stderr
