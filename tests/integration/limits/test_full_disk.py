# SPDX-License-Identifier: MIT
"""On a full file system a program reports a clear error, leaves nothing half made, and what ran goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ghostbox.donors import token
from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorError
from ghostbox.memserver.identity import donor_id
from ghostbox.units import MIB
from helpers import paired
from helpers.donor import donor_environment, running_donor
from helpers.limits import SmallDisk, bounded_disk, small_disk
from helpers.nbd import read_export, write_export
from helpers.pager import installed_build, running_memserver

ANA = Holder("tower", "ana")
MAKE_ROOM = "make space there: df -h and df -i show which file system is full"


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk() as found:
        yield found


def _ghostbox(env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ghostbox.cli.main", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


def _memserver(env: Mapping[str, str]) -> str:
    """Return the output of a memserver that does not start."""
    words = ["memserver", "--name", "donor", "--size", "8M", "--reserve", "0", "--port", "0", "--control-port", "0"]
    done = _ghostbox(env, *words)
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr


@pytest.mark.parametrize("known", [False, True], ids=["first start", "later start"])
def test_no_room_for_a_donors_own_files_is_said_and_leaves_no_process(
    disk: SmallDisk, tmp_path: Path, known: bool
) -> None:
    state = disk.path / "memservers/donor"
    state.mkdir(parents=True)
    if known:
        donor_id(state)
    disk.fill()
    with small_disk() as runtime:
        said = _memserver(donor_environment(tmp_path, runtime.path, {"GHOSTBOX_STATE_DIR": str(disk.path)}))
        assert runtime.files() == []
    assert f"error: cannot write {state}/lock: No space left on device" in said
    assert f"fix: {MAKE_ROOM}" in said
    assert not processes_with(str(disk.path))


def processes_with(word: str) -> list[str]:
    """Return command lines of memory servers that name ``word``."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in lines if "ghostbox-memserver" in line and word in line]


@pytest.mark.parametrize(
    ("n_files", "message"),
    [
        (0, "error: cannot make {place}: No space left on device"),
        (2, "cannot make the control socket {place}/control.sock: No space left on device"),
    ],
)
def test_no_room_in_the_runtime_directory_is_said(disk: SmallDisk, tmp_path: Path, n_files: int, message: str) -> None:
    """There is no room for a directory, or none for the socket (directory and subdirectory fit)."""
    disk.fill_inodes(leave=n_files)
    said = _memserver(donor_environment(tmp_path, disk.path))
    assert message.format(place=disk.path / "memservers" / "donor") in said
    assert f"fix: {MAKE_ROOM}" in said
    assert disk.files() == []
    assert not processes_with(str(disk.path))


def test_a_donor_whose_disk_is_full_refuses_leases_and_goes_on_with_those_it_has(
    disk: SmallDisk, tmp_path: Path
) -> None:
    content = os.urandom(4 * MIB)
    (tmp_path / "in").write_bytes(content)
    full = f"cannot write the lease records {disk.path}/memservers/donor/leases.json: No space left on device"
    with (
        running_donor(tmp_path, env={"GHOSTBOX_STATE_DIR": str(disk.path)}) as donor,
        DonorClient(donor.address) as client,
    ):
        first = client.create_lease("one", 4 * MIB, ANA)
        write_export(donor.uri("one"), tmp_path / "in")
        disk.fill()
        with pytest.raises(DonorError, match=full):
            client.create_lease("two", MIB, ANA)
        with pytest.raises(DonorError, match=full):
            client.drain()
        assert not client.status().draining
        assert read_export(donor.uri("one"), tmp_path / "out") == content
        # The data plane's new incarnation cannot be recorded: it is noted in memory, and recorded with the next change.
        os.kill(donor.data_plane_pid, signal.SIGKILL)
        donor.wait_for_log("restarted with empty memory; 1 leases lost their content")
        assert full in donor.stderr()
        assert client.lease("one").incarnation != first.incarnation
        disk.free()
        client.create_lease("two", MIB, ANA)
        now = client.lease("one").incarnation
        donor.kill_control_plane()
        donor.restart()
        with DonorClient(donor.address) as later:
            assert later.lease("one").incarnation == now  # and does not count as memory that was lost since


def test_a_secure_donor_whose_disk_is_full_pairs_nobody_says_so_and_serves_those_it_has(tmp_path: Path) -> None:
    state = tmp_path / "small"
    state.mkdir()
    env = {"GHOSTBOX_STATE_DIR": str(state)}
    with bounded_disk(state) as disk, running_donor(tmp_path, env=env, secure="") as donor:
        host, open_token = paired.pair(paired.new_token(donor)), token.parse(paired.new_token(donor))
        disk.leave(0)
        said = paired.ghostbox(donor, "token", "create")
        assert said.returncode == 1
        assert f"error: cannot use {donor.state_dir}/clients.sqlite3: " in said.stderr
        assert f"fix: see that {donor.state_dir} can be written and has space: df -h" in said.stderr
        wanted = paired.request_of(open_token, "00" * 32)
        with paired.connect(donor.address) as http:
            refused = http.post("/v1/pairings", json=wanted)
        assert (refused.status_code, refused.json()["error"]["message"]) == (500, "the donor has a problem")
        with host.http() as http:
            assert http.get("/v1/status").status_code == 200
        disk.grow()
        with paired.connect(donor.address) as http:
            assert http.post("/v1/pairings", json=wanted).status_code == 201
        assert len(json.loads(paired.ghostbox(donor, "memserver", "clients", "--json").stdout)) == 2


def test_an_image_that_does_not_fit_is_not_half_imported(disk: SmallDisk, tmp_path: Path) -> None:
    image = tmp_path / "cloud.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    subprocess.run(["qemu-io", "-c", "write 0 1M", image], check=True, stdout=subprocess.DEVNULL)
    env = donor_environment(tmp_path, tmp_path, {"GHOSTBOX_CACHE_DIR": str(disk.path)})
    done = _ghostbox(env, "image", "import", str(image), "--name", "mine")
    assert done.returncode == 1, done
    assert f"error: no space for the image in {disk.path}/images: " in done.stderr
    assert "fix: free some space, or set GHOSTBOX_CACHE_DIR to a directory with enough" in done.stderr
    assert _ghostbox(env, "image", "list", "-o", "json").stdout.strip() == "[]"
    assert [name for name in disk.files() if not name.endswith(".lock")] == []


def test_a_pager_without_room_for_its_sockets_says_which(disk: SmallDisk) -> None:
    with running_memserver(a="16M") as donor:
        for n_files, place, name in ((0, "l", "listen on"), (1, "c", "open the control socket")):
            disk.fill_inodes(leave=n_files) if n_files == 0 else (disk.path / "fillers" / "0").unlink()
            argv: list[str | Path] = [
                installed_build().pager,
                "--listen",
                disk.path / "l",
                "--control",
                disk.path / "c",
            ]
            done = subprocess.run(
                [*argv, "--cache", "4M", "--donor", donor.uri("a")],
                capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip
            assert done.returncode == 1
            assert f"cannot {name} {disk.path / place}: No space left on device" in done.stderr
            assert disk.files() == []
