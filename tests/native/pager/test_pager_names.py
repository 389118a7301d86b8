# SPDX-License-Identifier: MIT
"""Donors' names: every address is tried, each for a bounded time; a name is looked up anew, for which nobody waits."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.processes import wait_until
from helpers.hostile_donor import hostile_donor
from helpers.netns import machines
from helpers.pager import RunningPager, memory_client, running_memserver, running_pager
from helpers.takeover import PagerLine, pager_line

NAME = "donor.example"


class Names:
    """What the processes that run with ``prefix`` are told of names: an own hosts file, and a resolver of ours."""

    def __init__(self, place: Path) -> None:
        self._hosts, self._resolver = place / "hosts", place / "resolv.conf"
        self._hosts.write_text("")
        self._resolver.write_text("nameserver 127.0.0.1\n")
        (place / "nsswitch").write_text("hosts: files dns\n")
        mounts = [(self._hosts, "hosts"), (self._resolver, "resolv.conf"), (place / "nsswitch", "nsswitch.conf")]
        script = " && ".join(f"mount --bind {ours} /etc/{theirs}" for ours, theirs in mounts)
        self.prefix = ("unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh")

    def say(self, *addresses: str) -> None:
        """Let the name stand for these, in this order."""
        self._hosts.write_text("".join(f"{address} {NAME}\n" for address in addresses))

    def ask(self, server: str) -> None:
        """Ask this resolver for what is not in the hosts file, and wait for it as long as can be."""
        self._resolver.write_text(f"nameserver {server}\noptions timeout:30 attempts:5\n")


@pytest.fixture
def names(tmp_path: Path) -> Names:
    if os.geteuid() != 0:
        pytest.skip("cannot run here: mount namespaces need root")
    if not Path("/etc/resolv.conf").exists() or not Path("/etc/nsswitch.conf").exists():
        pytest.skip("cannot run here: there are no files to mount others over")
    return Names(tmp_path)


def by_name(uri: str) -> str:
    """Return the URI with the name in place of its address."""
    return re.sub(r"//(\[[^]]*\]|[^:/]*):", f"//{NAME}:", uri)


def why(pager: RunningPager | PagerLine, donor: int = 0) -> str:
    """Return why a donor is away, "" if it is not."""
    return str(pager.status()["donors"][donor]["why"] or "")


def addresses_of_pager(pager: RunningPager | PagerLine, port: str) -> set[str]:
    """Return where the pager is connected to this port."""
    shown = subprocess.run(["ss", "-Htnp", "dport", "=", f":{port}"], capture_output=True, text=True, check=True)
    ours = [line.split() for line in shown.stdout.splitlines() if f"pid={pager.process.pid}," in line]
    return {words[4].rpartition(":")[0] for words in ours}


@contextlib.contextmanager
def silent_address(address: str, port: int) -> Iterator[None]:
    """An address where no connection is answered, nor refused: whoever listens there takes no more of them."""
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
    """Start, break and takeover. The silent one comes first, and again whenever the others were tried in vain."""
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
    """Neither can show who it is. Where ours was it would count as ours without its memory; elsewhere it is nobody."""
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
            said = f"127.0.0.3:{port}: another server answers there: one without a donor's id instead of ours"
            wait_until(lambda: said in why(pager), timeout_s=30, what="the stranger being seen")
            assert pager.status()["pool"]["lost_pages"] == 0
            assert pager.status()["pages"]["poisoned"] == 0


def test_a_resolver_that_does_not_answer_holds_up_no_other_donor(names: Names) -> None:
    with (
        running_memserver(a="16M") as named,
        running_memserver(b="16M") as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver,
    ):
        resolver.bind(("127.0.0.53", 53))
        resolver.settimeout(30)
        names.say("127.0.0.1")
        with (
            pager_line(
                [by_name(named.uri("a")), other.uri("b")], extent="4M", readahead="0", prefix=names.prefix
            ) as line,
            memory_client("32M", line.listen) as client,
        ):
            client.command("fill", seed=1)
            names.ask("127.0.0.53")
            names.say()
            line.kill()
            line.resume()
            assert NAME.partition(".")[0].encode() in resolver.recv(512), "asked, and never answered"
            # Extents lie on the donors in turn: pages of the first one wait, those of the other do not.
            client.start("read", first=0)
            for extent in (1, 3, 5, 7):
                client.command("verify", seed=1, first=extent * 1024, n=1024)
            assert client.answers_nothing("read", for_s=0.3)
            names.say("127.0.0.1")  # too late for the lookup that waits
            line.kill()
            line.resume()
            assert client.result("read", timeout_s=60)["ok"]
            client.command("verify", seed=1)


def test_a_name_that_has_no_address_any_more_is_tried_where_it_was(names: Names) -> None:
    """And a pager that never knew an address says so, and asks again until there is one."""
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
