# SPDX-License-Identifier: MIT
"""Donors have names: the pager tries each address of a name for a bounded time.

A name is looked up anew while the pager serves on.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system.processes import wait_until
from helpers.hostile_donor import hostile_donor
from helpers.netns import machines
from helpers.pager import RunningPager, memory_client, running_memserver, running_pager
from helpers.takeover import PagerLine, pager_line

NAME = "donor.example"


class Names:
    """Give the processes that run with ``prefix`` a hosts file and a resolver of the test's own."""

    def __init__(self, place: Path) -> None:
        self._hosts, self._resolver = place / "hosts", place / "resolv.conf"
        self._hosts.write_text("")
        self._resolver.write_text("nameserver 127.0.0.1\n")
        (place / "nsswitch").write_text("hosts: files dns\n")
        mounts = [(self._hosts, "hosts"), (self._resolver, "resolv.conf"), (place / "nsswitch", "nsswitch.conf")]
        script = " && ".join(f"mount --bind {ours} /etc/{theirs}" for ours, theirs in mounts)
        self.prefix = ("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh")

    def say(self, *addresses: str) -> None:
        """Let the name stand for these addresses, in this order."""
        self._hosts.write_text("".join(f"{address} {NAME}\n" for address in addresses))

    def ask(self, server: str) -> None:
        """Send names that are not in the hosts file to this resolver, which may take as long as it likes."""
        self._resolver.write_text(f"nameserver {server}\noptions timeout:30 attempts:5\n")


@pytest.fixture
def names(tmp_path: Path) -> Names:
    if os.geteuid() != 0:
        pytest.skip("cannot run here: mount namespaces need root")
    if not Path("/etc/resolv.conf").exists() or not Path("/etc/nsswitch.conf").exists():
        pytest.skip("cannot run here: there are no files to mount others over")
    return Names(tmp_path)


def by_name(uri: str) -> str:
    """Return the URI with the name in place of the address."""
    return re.sub(r"//(\[[^]]*\]|[^:/]*):", f"//{NAME}:", uri)


def why(pager: RunningPager | PagerLine, donor: int = 0) -> str:
    """Return why a donor is away, or "" if it is not away."""
    return str(pager.status()["donors"][donor]["why"] or "")


def addresses_of_pager(pager: RunningPager | PagerLine, port: str) -> set[str]:
    """Return the addresses at which the pager is connected to this port."""
    shown = subprocess.run(["ss", "-Htnp", "dport", "=", f":{port}"], capture_output=True, text=True, check=True)
    ours = [line.split() for line in shown.stdout.splitlines() if f"pid={pager.process.pid}," in line]
    return {words[4].rpartition(":")[0] for words in ours}


@contextlib.contextmanager
def silent_address(address: str, port: int) -> Iterator[None]:
    """Make an address neither accept nor refuse connections: the backlog of the socket that listens there is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


def test_after_a_takeover_a_donor_is_found_at_the_second_of_its_addresses(names: Names) -> None:
    with running_memserver(a="16M") as donor:
        names.say("::1", "127.0.0.1")
        with (
            pager_line([by_name(donor.uri("a"))], readahead="0", prefix=names.prefix) as line,
            memory_client("16M", line.listen) as client,
        ):
            client.command("fill", seed=1)
            line.kill()
            line.resume()
            client.command("verify", seed=1, timeout_s=60)
            assert line.status()["donors"][0]["down_s"] is None


def test_an_address_that_does_not_answer_costs_the_others_a_bounded_time(names: Names) -> None:
    """At the start, after a broken connection, and at a takeover.

    The silent address is tried first, and again whenever all other addresses have failed.
    """
    with running_memserver(a="16M") as donor:
        port = int(donor.address.rpartition(":")[2])
        names.say("127.0.0.4", "127.0.0.5", "127.0.0.1")
        with (
            silent_address("127.0.0.4", port),
            silent_address("127.0.0.5", port),
            pager_line([by_name(donor.uri("a"))], readahead="0", prefix=names.prefix) as line,
            memory_client("16M", line.listen) as client,
        ):
            client.command("fill", seed=1)
            line.kill()
            line.resume()
            client.command("verify", seed=1, timeout_s=60)
            donor.process.kill()
            donor.process.wait(10)
            expected = (
                f"127.0.0.1:{port}: connection refused; 127.0.0.4:{port}: its machine does not answer; "
                f"127.0.0.5:{port}: its machine does not answer"
            )
            wait_until(lambda: why(line) == expected, timeout_s=60, what="each address being tried")
            told = line.log().count(f"no connection: {expected}")
            assert (told, line.log().count("no connection")) == (1, 1), "once a cause, not once an address"


def test_a_donor_that_moves_to_another_address_is_found_there(names: Names) -> None:
    with (
        machines(1) as (machine,),
        running_memserver(a="16M", prefix=machine.prefix, options=("--bind", "0.0.0.0")) as donor,
    ):
        names.say(machine.address)
        uri = by_name(donor.uri("a"))
        with (
            running_pager([uri], cache="2M", readahead="0", prefix=names.prefix) as pager,
            memory_client("16M", pager) as client,
        ):
            client.command("fill", seed=1)
            moved = machine.move()
            client.start("verify", seed=1)
            wait_until(lambda: why(pager) == "its machine does not answer", timeout_s=60, what="it being away")
            assert client.answers_nothing("verify", for_s=0.3)
            names.say(moved)
            assert client.result("verify", timeout_s=60)["ok"]
            assert f"donor {uri}: its name stands for {moved}:{donor.address.rpartition(':')[2]} now" in pager.log()
            assert pager.status()["pages"]["poisoned"] == 0


def test_another_donor_at_a_names_new_address_is_not_believed(names: Names) -> None:
    with running_memserver(a="16M", options=("--bind", "127.0.0.2", "--donor-id", "ours")) as donor:
        port = donor.address.rpartition(":")[2]
        with running_memserver(a="16M", options=("--bind", "127.0.0.3", "--port", port, "--donor-id", "other")):
            names.say("127.0.0.2")
            with (
                pager_line([by_name(donor.uri("a"))], readahead="0", prefix=names.prefix) as line,
                memory_client("16M", line.listen) as client,
            ):
                client.command("fill", seed=1)
                names.say("127.0.0.3")
                line.kill()
                line.resume()
                client.start("verify", seed=1)
                said = "another server answers there: donor other instead of donor ours"
                wait_until(lambda: why(line) == said, timeout_s=30, what="the stranger being seen")
                assert line.status()["pool"]["lost_pages"] == 0
                assert client.answers_nothing("verify", for_s=0.3)
                names.say("127.0.0.3", "127.0.0.2")
                assert client.result("verify", timeout_s=60)["ok"]
                wait_until(lambda: why(line) == "", timeout_s=30, what="all connections")
                assert addresses_of_pager(line, port) == {"127.0.0.2"}


def test_a_server_without_an_id_is_not_taken_for_another_one_at_another_address(names: Names) -> None:
    """Neither of two servers can show its identity.

    At its first address it would count as the same server without its memory; at another address it counts as a
    stranger.
    """
    with running_memserver(a="16M", options=("--bind", "127.0.0.2")) as donor:
        port = donor.address.rpartition(":")[2]
        names.say("127.0.0.2")
        with (
            running_pager([by_name(donor.uri("a"))], cache="2M", readahead="0", prefix=names.prefix) as pager,
            memory_client("16M", pager) as client,
            running_memserver(a="16M", options=("--bind", "127.0.0.3", "--port", port)),
        ):
            client.command("fill", seed=1)
            names.say("127.0.0.3")
            donor.process.kill()
            client.start("verify", seed=1)
            said = (
                f"127.0.0.3:{port}: another server answers there: a server without a donor's id instead of this donor"
            )
            wait_until(lambda: said in why(pager), timeout_s=30, what="the stranger being seen")
            assert pager.status()["pool"]["lost_pages"] == 0
            assert pager.status()["pages"]["poisoned"] == 0


@contextlib.contextmanager
def silent_resolver() -> Iterator[tuple[socket.socket, str]]:
    """Listen as a name server that never answers; yield socket and address. 127.0.0.53 may be in use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        resolver.bind((address, 53))
        resolver.settimeout(30)
        yield resolver, address


def test_a_resolver_that_does_not_answer_holds_up_no_other_donor(names: Names) -> None:
    with (
        running_memserver(a="16M") as named,
        running_memserver(b="16M") as other,
        silent_resolver() as (resolver, address),
    ):
        names.say("127.0.0.1")
        with (
            pager_line(
                [by_name(named.uri("a")), other.uri("b")], extent="4M", readahead="0", prefix=names.prefix
            ) as line,
            memory_client("32M", line.listen) as client,
        ):
            client.command("fill", seed=1)
            names.ask(address)
            names.say()
            line.kill()
            line.resume()
            assert NAME.partition(".")[0].encode() in resolver.recv(512), "asked, and never answered"
            # Extents are on the donors by turns: pages of the first donor wait, pages of the other one do not.
            client.start("read", first=0)
            for extent in (1, 3, 5, 7):
                client.command("verify", seed=1, first=extent * 1024, n=1024)
            assert client.answers_nothing("read", for_s=0.3)
            names.say("127.0.0.1")  # this is too late for the lookup in flight
            line.kill()
            line.resume()
            assert client.result("read", timeout_s=60)["ok"]
            client.command("verify", seed=1)


def test_a_name_that_has_no_address_any_more_is_tried_where_it_was(names: Names) -> None:
    """The pager then tries the name's last address.

    A pager that never knew an address reports this, and looks the name up until there is an address.
    """
    with hostile_donor(16 << 20) as donor:
        names.say("127.0.0.1")
        with (
            pager_line([by_name(donor.uri)], readahead="0", prefix=names.prefix) as line,
            memory_client("16M", line.listen) as client,
        ):
            client.command("fill", seed=1, timeout_s=120)
            names.say()
            donor.hang_up()
            client.command("verify", seed=1, timeout_s=120)
            assert line.status()["donors"][0]["reconnects"] > 0
            line.kill()
            line.resume()
            client.start("read", first=0)
            wait_until(lambda: "its name has no address: " in why(line), timeout_s=60, what="the resolver's words")
            assert client.answers_nothing("read", for_s=0.3)
            names.say("127.0.0.1")
            assert client.result("read", timeout_s=60)["ok"]
