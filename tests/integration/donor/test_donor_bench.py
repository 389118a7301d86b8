# SPDX-License-Identifier: MIT
"""``ghostbox donor bench`` measures the link to real donors, and leaves no lease on them. No timing is asserted."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.donors import bench as donor_bench
from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.donors.trust import Channel, Means
from ghostbox.paths import Paths
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import held_connection
from helpers.netns import INSECURE, machines, narrow_way

FIGURES = {"rtt_p50_us", "rtt_p99_us", "read_bytes_per_s", "write_bytes_per_s"}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="64M") as running:
        yield running


def argv(*words: str) -> list[str]:
    return [sys.executable, "-m", "ghostbox.cli.main", "donor", "bench", *words]


def bench(running: RunningDonor, *words: str, **env: str) -> tuple[int, str, str]:
    """Return exit code, stdout, and stderr on one line."""
    done = subprocess.run(
        argv(*words),
        env={**running.env, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def leases(running: RunningDonor) -> list[str]:
    with DonorClient(running.address) as client:
        return [lease.name for lease in client.leases()]


def test_figures_are_shown_kept_and_the_lease_is_gone(donor: RunningDonor) -> None:
    code, out, err = bench(donor, donor.address, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["donors"]
    link = found["link"]
    assert (found["name"], found["error"], link["address"]) == ("donor", None, donor.address)
    assert all(link[figure] > 0 for figure in FIGURES)
    assert link["rtt_p50_us"] <= link["rtt_p99_us"]
    host = json.loads(out)["host"]
    assert host["fault_us"] > 0 < host["access_us"]
    assert leases(donor) == []
    kept = Path(donor.env["GHOSTBOX_STATE_DIR"]) / "links"
    assert {json.loads(file.read_text())["measured_at"] for file in kept.iterdir()} >= {link["measured_at"]}
    where = Paths(kept.parent, kept, kept, kept, kept)
    kept_link = donor_bench.kept_links([donor.address], where)[donor.address]
    assert kept_link.rtt_p50_us == link["rtt_p50_us"]
    assert donor_bench.kept_host(where) is not None


def test_the_donors_of_the_configuration_are_measured_and_known_by_name(donor: RunningDonor) -> None:
    for words in ((), ("donor",)):
        code, out, err = bench(donor, *words, GHOSTBOX_POOL_DONORS=donor.address)
        assert code == 0, err
        assert "4 KiB read p50" in out
        assert f"{donor.address} donor" in " ".join(out.split())
        assert "MiB/s" in out
        assert "1 of 1 donors" in err


def test_without_any_donor_it_says_what_to_do(donor: RunningDonor) -> None:
    code, _, err = bench(donor)
    assert code == 2
    assert "no donor is given" in err
    assert "name donors, note them (ghostbox donor add), or set pool.donors" in err


def test_a_donor_that_is_not_there(donor: RunningDonor) -> None:
    code, out, err = bench(donor, "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert "cannot reach donor 127.0.0.1:1" in err


def test_one_that_fails_leaves_the_others_their_figures(donor: RunningDonor) -> None:
    code, out, err = bench(donor, "127.0.0.1:1", donor.address, "--json")
    assert code == 6
    absent, there = json.loads(out)["donors"]
    assert absent["error"] == "cannot reach donor 127.0.0.1:1"
    assert absent["link"] is None
    assert there["link"]["read_bytes_per_s"] > 0
    assert "1 of 2 donors could not be measured" in err


def test_a_donor_without_room(tmp_path: Path) -> None:
    with running_donor(tmp_path, size="8M") as full:
        with DonorClient(full.address) as client:
            client.create_lease("all", 8 * MIB, Holder("tower", "ana"))
        code, _, err = bench(full, full.address)
        assert code == 5
        assert f"donor {full.address}: has 0 B free, a measurement needs 1 MiB" in err
        assert "why: it lends 8 MiB of 8 MiB in 1 leases" in err
        assert "fix: measure before `ghostbox up`; ghostbox donor leases" in err
        assert leases(full) == ["all"]


def test_a_donor_with_little_room_is_measured_with_what_it_has(tmp_path: Path) -> None:
    with running_donor(tmp_path, size="2M") as small:
        code, _, err = bench(small, small.address)
        assert code == 0, err


def test_a_donor_that_is_draining_refuses(tmp_path: Path) -> None:
    with running_donor(tmp_path, size="8M", drain_timeout="60s") as leaving:
        with DonorClient(leaving.address) as client:
            lease = client.create_lease("held", 4 * MIB, Holder("tower", "ana"))
            with held_connection(leaving.uri(lease.export)):
                leaving.interrupt()
                processes.wait_until(lambda: client.status().draining, timeout_s=20, what="the drain")
                code, _, err = bench(leaving, leaving.address)
        assert code == 1
        assert "this donor is being shut down and gives no new leases" in err


@contextlib.contextmanager
def only_control_port(running: RunningDonor) -> Iterator[str]:
    """Forward another address's control port alone, as a firewall that knows no other port would; yield the address."""
    target = (running.address.rpartition(":")[0], int(running.address.rpartition(":")[2]))
    with socket.create_server(("127.0.0.2", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection(target)
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.2:{server.getsockname()[1]}"


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_memory_that_cannot_be_reached_is_told_from_a_donor_that_cannot(donor: RunningDonor) -> None:
    with only_control_port(donor) as address:
        code, _, err = bench(donor, address)
    assert code == 1
    assert f"donor {address} granted a lease, but its memory cannot be used" in err
    assert f"NBD server 127.0.0.2:{donor.nbd_port}: cannot connect" in err
    assert "a firewall may let only the control port in" in err
    assert leases(donor) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_gives_its_lease_back(donor: RunningDonor, number: signal.Signals) -> None:
    with subprocess.Popen(argv(donor.address), env=donor.env, stderr=subprocess.DEVNULL) as running:
        processes.wait_until(lambda: leases(donor) != [], timeout_s=30, what="a lease")
        running.send_signal(number)
        assert running.wait(30) == 130
    assert leases(donor) == []


def test_a_donor_on_another_machine(tmp_path: Path) -> None:
    with (
        machines(1) as (machine,),
        running_donor(tmp_path, prefix=machine.prefix, bind=machine.address, insecure="", env=INSECURE) as far,
    ):
        code, out, err = bench(far, far.address, "--json")
        assert code == 0, err
        assert json.loads(out)["donors"][0]["link"]["address"].startswith(machine.address)


def test_a_donor_whose_link_passes_no_pages_is_named_with_the_reason(tmp_path: Path) -> None:
    """`donor bench` once hung. The link drops long packets silently, and lets the control API and handshakes pass."""
    with (
        narrow_way() as way,
        running_donor(
            tmp_path, size="64M", bind=way.machine.address, port="10809", control_port="10810", insecure="",
            prefix=way.machine.prefix, env=INSECURE,
        ) as running,
    ):  # fmt: skip
        way.set_mtu(1500)
        code, _, err = bench(running, running.address)
        assert code != 0
        assert f"donor {running.address} granted a lease, but its memory cannot be used" in err
        assert "short requests are answered, pages are not: is the MTU the same on the whole way?" in err
        assert f"ping -M do -s 8972 {way.machine.address}" in err
        way.set_mtu(9000)
        assert leases(running) == []


def test_a_donor_is_found_at_the_second_of_its_names_addresses(
    donor: RunningDonor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first address no process listens."""
    host, _, port = donor.address.rpartition(":")
    look_up = socket.getaddrinfo

    def two(name: str, *args: object, **more: object) -> list[object]:
        names = ["::1", host] if name == "donor.example" else [name]
        return [found for each in names for found in look_up(each, *args, **more)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with DonorClient(f"donor.example:{port}", channel=Channel(Means.INSECURE)) as client:
        assert client.status().name
