# SPDX-License-Identifier: MIT
"""``up`` refuses bad requests with the messages that the user sees, and leaves nothing behind."""

from __future__ import annotations

import email
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.donor import RunningDonor, running_donor
from helpers.lab import Host, Run, lab

pytestmark = pytest.mark.timeout(120)
VM = "gbt-refused"


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="256M") as running:
        yield running


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with lab() as made:
        yield made


def up(host: Host, *words: str | Path, memory: str = "256M", remote: str = "128M", cache: str = "16M") -> Run:
    return host.cli("up", VM, "--memory", memory, "--remote-memory", remote, "--cache", cache, *words)


def says(done: Run, pattern: str, *, code: int) -> None:
    text = " ".join(done.stderr.split())
    assert re.search(pattern, text), text
    assert done.returncode == code, text


@pytest.fixture(autouse=True)
def nothing_is_left_behind(host: Host, donor: RunningDonor) -> Iterator[None]:
    before = host.belongings([donor])
    yield
    assert host.belongings([donor]) == before


def test_no_donor(host: Host) -> None:
    says(
        up(host),
        "error: no donor is named, and none is known fix: run `ghostbox memserver` on another machine,"
        " here the line that it prints: ghostbox donor add TOKEN",
        code=2,
    )


def test_donors_that_this_host_knows_are_used_if_none_is_named(host: Host, donor: RunningDonor) -> None:
    host.cli("donor", "add", donor.address, check=True)
    try:
        plan = json.loads(up(host, "--dry-run", "--json").stdout)
        assert plan["donors"] == [donor.address]
    finally:
        host.cli("donor", "forget", donor.address, check=True)
    assert "no donor is named" in up(host, "--dry-run").stderr


def test_vm_for_which_this_machine_has_too_little_memory(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, memory="4096G")
    says(done, r"error: VM 'gbt-refused' needs 4 TiB of this machine's memory, and .* fix: .*--overcommit", code=5)


def test_donor_that_is_not_there(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = up(host, "--donor", f"127.0.0.1:{port}")
    says(done, f"error: cannot reach donor 127.0.0.1:{port} why: connection refused", code=1)


def test_nbd_port_in_place_of_the_control_port(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.nbd_address)
    says(
        done,
        f"error: {donor.nbd_address} is an NBD server, not a donor's control API fix: give the control port",
        code=1,
    )


def test_donor_too_small(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, remote="512M")
    says(
        done, f"error: donor {donor.address}: offers 256 MiB, the VM needs 512 MiB fix: lower vm.remote_memory", code=5
    )


@pytest.mark.parametrize("more", [(), ("--allow-same-host",)])
def test_two_copies_on_one_machine(host: Host, donor: RunningDonor, more: tuple[str, ...]) -> None:
    other = donor.address.replace("127.0.0.1", "localhost")
    done = up(host, "--donor", donor.address, "--donor", other, "--replicas", "2", *more)
    says(
        done,
        "error: 2 copies need donors on 2 machines, and these are on 1 why: 127.0.0.1.* are one donor fix: add a donor"
        " on another machine; or --allow-same-host; or --replicas 1 with --backup PATH",
        code=5,
    )


def test_plan_says_how_many_copies_there_will_be(host: Host, donor: RunningDonor) -> None:
    words = ("--donor", donor.address, "--backup", str(host.root), "--on-donor-loss", "pause", "--dry-run")
    plan = json.loads(up(host, *words, "--json").stdout)
    assert (plan["pager"]["replicas"], plan["pager"]["on_donor_loss"]) == (1, "pause")
    assert plan["backup"] == str(host.root / f"ghostbox-{VM}.backup")
    assert f"1 on donors and one in {plan['backup']}" in up(host, *words).stdout


def test_cache_larger_than_the_remote_memory(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, cache="1G")
    says(done, r"error: pool.cache \(1 GiB\) is not smaller than vm.remote_memory \(128 MiB\)", code=2)


def test_remote_memory_that_the_guest_cannot_take(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, remote="200M")
    says(done, r"vm.remote_memory \(200MiB\) is not a multiple of 128 MiB .* fix: nearest: 128MiB or 256MiB", code=2)


def test_image_that_is_not_there(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, "--image", "nosuch")
    says(done, "error: no image named 'nosuch' fix: there are: .*debian", code=4)


def test_forwarded_port_that_is_in_use(host: Host, donor: RunningDonor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = up(host, "--donor", donor.address, "-p", f"{port}:80")
    says(done, f"error: port {port} of 127.0.0.1 is in use fix: choose another with -p HOST:GUEST", code=5)


def test_cloud_init_file_that_is_not_there(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, "--cloud-init", "nosuch.yaml")
    says(done, "error: cannot read vm.cloud_init .*nosuch.yaml", code=2)


def test_directory_that_qemu_may_not_pass(host: Host, donor: RunningDonor) -> None:
    host.root.chmod(0o700)
    try:
        done = up(host, "--donor", donor.address)
    finally:
        host.root.chmod(0o711)
    says(done, f"error: QEMU cannot reach {host.root}.* may not pass {host.root} fix: chmod o\\+x {host.root}", code=5)


def test_runtime_directory_whose_sockets_would_have_too_long_a_path(donor: RunningDonor) -> None:
    with lab() as deep:
        long = deep.root / ("x" * 90)
        done = Host(deep.root, {**deep.env, "GHOSTBOX_RUNTIME_DIR": str(long)}).cli(
            "up", VM, "--memory", "256M", "--remote-memory", "128M", "--cache", "16M", "--donor", donor.address
        )
    says(
        done, "error: the path of a socket is too long: .* fix: set GHOSTBOX_RUNTIME_DIR to a shorter directory", code=5
    )


def test_full_disk_under_the_state_directory(host: Host, donor: RunningDonor) -> None:
    small = host.root / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=711", "tmpfs", small], check=True)
    try:
        filler = small / "filler"
        filler.write_bytes(bytes(40 * 1024))
        full = Host(host.root, {**host.env, "GHOSTBOX_STATE_DIR": str(small)})
        done = up(full, "--donor", donor.address)
        left = [path for path in small.rglob("*") if path.is_file() and path != filler]
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()
    says(done, "No space left on device|cannot make the disk", code=1)
    assert left == []


def test_wrong_name_of_a_vm(host: Host) -> None:
    says(host.cli("up", "../evil"), "'../evil' is not a name", code=2)


@pytest.mark.parametrize("command", ["down", "shell", "info", "status", "logs", "console", "wait", "delete"])
def test_vm_that_does_not_exist(host: Host, command: str) -> None:
    says(host.cli(command, "nosuch"), "error: no VM named 'nosuch' fix: ghostbox up", code=4)


def test_dry_run_shows_the_plan_and_does_nothing(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, "--dry-run", "--cpus", "3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"remote memory +128 MiB", done.stdout)
    assert re.search(rf"from +{donor.address}: 128 MiB", done.stdout)
    assert re.search(r"CPUs +3", done.stdout)


def test_print_plan_as_json(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, "--print", "plan", "--json")
    assert '"remote_memory_bytes": 134217728' in done.stdout


def test_print_xml_shows_the_domain(host: Host, donor: RunningDonor) -> None:
    done = up(host, "--donor", donor.address, "--print", "xml")
    assert done.stdout.startswith("<domain ")
    assert '<memory model="dimm" access="shared">' in done.stdout


def test_print_cloud_init_shows_the_seed_without_private_keys(host: Host, donor: RunningDonor) -> None:
    extra = host.root / "extra.yaml"
    extra.write_text("#cloud-config\nwrite_files: [{path: /etc/theirs, content: x}]\n")
    done = up(host, "--donor", donor.address, "--print", "cloud-init", "--cloud-init", extra)
    parts = [part.get_payload(decode=True) for part in email.message_from_string(done.stdout).walk()]
    text = b"\n".join(part for part in parts if isinstance(part, bytes)).decode()
    assert "/etc/theirs" in text
    assert "numa_balancing" in text
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize("words", [("add", "--size", "1G"), ("drain", "--to-host"), ("drain", "--no-wait"), ("keep",)])
def test_donors_of_a_vm_that_does_not_exist(host: Host, words: tuple[str, ...]) -> None:
    command, *more = words
    says(host.cli("donor", command, "127.0.0.1:1", "--vm", "nosuch", *more), "error: no VM named 'nosuch'", code=4)
