# SPDX-License-Identifier: MIT
"""What a donor's owner does to paired hosts ends their connections at once, outlives kills, and leaves no secret."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ghostbox.donors import token
from ghostbox.memserver import audit
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import paired
from helpers.donor import RunningDonor, donor_environment, running_donor
from helpers.nbd import read_export, system_python, write_export
from helpers.pager import running_pager
from helpers.paired import Host, connect, ghostbox, lend, nbds, new_token, pair

_READER = """
import sys
h.set_uri_allow_local_file(True)
h.connect_uri({uri!r})
print("ok", flush=True)
for line in sys.stdin:
    try:
        h.pread(1, 0)
        print("ok", flush=True)
    except nbd.Error:
        print("ended", flush=True)
"""


@pytest.fixture
def donor(tmp_path: Path) -> Iterator[RunningDonor]:
    with running_donor(tmp_path, secure="") as running:
        yield running


class Reader:
    """Is an NBD client that stays connected."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self) -> str:
        """Read a byte over the connection; return ``ok``, or ``ended`` if the connection is no more."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.said()

    def said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def reader(uri: str) -> Iterator[Reader]:
    argv = ["nbdsh", "-c", _READER.format(uri=uri)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, env=system_python(), text=True, **pipes) as process:  # type: ignore[call-overload]
        connected = Reader(process)
        assert connected.said() == "ok"
        yield connected


def opens(uri: str) -> bool:
    """Tell whether an NBD client can open an export and read it."""
    argv = ["nbdcopy", uri, "null:"]
    return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0


def status_of(host: Host) -> tuple[int, str]:
    with host.http() as http:
        answer = http.get("/v1/status")
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def events(donor: RunningDonor) -> list[tuple[str, str | None]]:
    return [(entry.event, entry.reason) for entry in audit.read(audit.path(donor.state_dir))]


# --- suspend and resume ---


def test_a_suspended_hosts_connections_end_at_once_and_come_back_with_its_memory(
    donor: RunningDonor, tmp_path: Path
) -> None:
    ana, ben = pair(new_token(donor)), pair(new_token(donor), host="attic")
    at = nbds(donor, tmp_path, "one", lend(ana, "one").json()["tls_psk"])
    other = nbds(donor, tmp_path, "two", lend(ben, "two").json()["tls_psk"])
    (tmp_path / "in").write_bytes(os.urandom(MIB))
    write_export(at, tmp_path / "in")
    with reader(at) as suspended, reader(other) as beside:
        done = ghostbox(donor, "memserver", "suspend", "tower")
        assert done.returncode == 0, done.stderr
        assert f"tower ({ana.client}) is suspended: its connections are closed, its memory here is kept" in done.stdout
        assert (suspended.read(), beside.read()) == ("ended", "ok")
    assert not opens(at)
    assert status_of(ana) == (403, "suspended")
    assert status_of(ben)[0] == 200
    assert ghostbox(donor, "memserver", "resume", "tower", "--output", "json").returncode == 0
    assert read_export(at, tmp_path / "out") == (tmp_path / "in").read_bytes()
    assert status_of(ana)[0] == 200
    assert [event for event, _ in events(donor)][-3:] == ["client-suspended", "request-refused", "client-resumed"]


def test_a_pager_waits_for_a_donor_that_suspended_its_host_and_goes_on(donor: RunningDonor, tmp_path: Path) -> None:
    host = pair(new_token(donor))
    at = nbds(donor, tmp_path, "one", lend(host, "one").json()["tls_psk"])
    with running_pager([at], cache="1M", extent="64K") as pager:
        assert pager.status()["donors"][0]["state"] == "up"
        ghostbox(donor, "memserver", "suspend", host.client)
        processes.wait_until(
            lambda: pager.status()["donors"][0]["state"] != "up", timeout_s=60, what="the pager's notice"
        )
        ghostbox(donor, "memserver", "resume", host.client)
        processes.wait_until(lambda: pager.status()["donors"][0]["state"] == "up", timeout_s=60, what="the connection")


@pytest.mark.parametrize("killed", ["control plane", "data plane"])
def test_a_suspension_outlives_both_programs(donor: RunningDonor, tmp_path: Path, killed: str) -> None:
    host = pair(new_token(donor))
    at = nbds(donor, tmp_path, "one", lend(host, "one").json()["tls_psk"])
    ghostbox(donor, "memserver", "suspend", "tower")
    if killed == "data plane":
        os.kill(donor.data_plane_pid, signal.SIGKILL)
        donor.wait_for_log("restarted with empty memory")
    else:
        donor.kill_control_plane()
        donor.restart()
    assert not opens(at)
    assert status_of(host) == (403, "suspended")
    ghostbox(donor, "memserver", "resume", "tower")
    assert opens(at)


# --- revoke ---


def test_a_revoked_hosts_connections_and_leases_end_at_once(donor: RunningDonor, tmp_path: Path) -> None:
    host = pair(new_token(donor))
    key = lend(host, "one").json()["tls_psk"]
    at = nbds(donor, tmp_path, "one", key)
    with reader(at) as revoked:
        asked = ghostbox(donor, "memserver", "revoke", "tower")
        assert asked.returncode == 2
        lost = "1 leases (1 MiB) end, and what its VMs have in them is lost"
        assert f"error: revoke tower? {lost} cannot be asked without a terminal" in asked.stderr
        assert revoked.read() == "ok"
        done = ghostbox(donor, "memserver", "revoke", "tower", "--yes")
        assert f"tower ({host.client}) is revoked: {lost}" in done.stdout
        assert revoked.read() == "ended"
    assert not opens(at)
    assert status_of(host) == (403, "revoked")
    assert json.loads(ghostbox(donor, "memserver", "clients", "--json").stdout)[0]["leases"] == 0
    again = pair(new_token(donor))  # the name of its lease is free, and the old key opens nothing
    assert lend(again, "one").status_code == 201
    assert not opens(at)
    assert ("lease-ended", "its client was revoked") in events(donor)
    assert ("client-revoked", "1 leases ended") in events(donor)
    back = ghostbox(donor, "memserver", "resume", host.client)
    assert back.returncode == 1
    assert "error: the pairing of tower was revoked for good" in back.stderr


@pytest.mark.parametrize(("state", "code"), [("revoked", "revoked"), ("suspended", "suspended")])
def test_a_control_plane_that_was_killed_behind_the_file_is_followed_by_one_that_does_the_rest(
    donor: RunningDonor, tmp_path: Path, state: str, code: str
) -> None:
    host = pair(new_token(donor))
    at = nbds(donor, tmp_path, "one", lend(host, "one").json()["tls_psk"])
    with reader(at) as live:
        donor.kill_control_plane()
        with contextlib.closing(sqlite3.connect(donor.state_dir / "clients.sqlite3")) as db, db:
            db.execute("UPDATE clients SET state = ?", (state,))
        assert live.read() == "ok"
        donor.restart()
        assert live.read() == "ended"
    assert not opens(at)
    assert status_of(Host(donor.address, host.client, host.credential)) == (403, code)
    assert donor.ready["leases"] == (0 if state == "revoked" else 1)


def test_hosts_are_named_by_name_or_id_and_who_is_not_there_is_said(donor: RunningDonor) -> None:
    one, two = pair(new_token(donor)), pair(new_token(donor))
    both = ghostbox(donor, "memserver", "suspend", "tower")
    assert both.returncode == 2
    assert "error: 2 clients are called 'tower'" in both.stderr
    assert f"fix: give the id of one: {one.client}, {two.client}" in both.stderr
    assert ghostbox(donor, "memserver", "suspend", two.client).returncode == 0
    nobody = ghostbox(donor, "memserver", "suspend", "attic")
    assert nobody.returncode == 4
    assert "error: no host 'attic' is paired with this donor\nfix: paired are: tower\n" in nobody.stderr
    listed = json.loads(ghostbox(donor, "memserver", "clients", "--output", "json").stdout)
    assert {each["id"]: each["state"] for each in listed} == {one.client: "active", two.client: "suspended"}
    shown = ghostbox(donor, "memserver", "clients").stdout
    assert re.search(rf"tower +{one.client} +active +user +0 B +0 of 64 +0 of 256 +no limit +20\d\d-", shown), shown


# --- the owner's door ---


def test_the_owners_socket_is_its_owners_alone_and_is_made_anew(donor: RunningDonor) -> None:
    door = donor.control_socket.with_name("owner.sock")
    assert door.stat().st_mode & 0o777 == 0o600
    assert door.parent.stat().st_mode & 0o777 == 0o700
    door.unlink()
    donor.wait_for_log("owner.sock was gone: it was made anew")
    assert json.loads(ghostbox(donor, "token", "list", "--json").stdout) == []


def test_a_donor_without_pairing_has_no_tokens(tmp_path: Path) -> None:
    with running_donor(tmp_path) as plain:
        done = ghostbox(plain, "token", "create")
        assert done.returncode == 1
        assert "error: this memserver lends without pairing: there are no clients and no tokens" in done.stderr
        asked = ghostbox(plain, "memserver", "approve", "tower")
        assert (asked.returncode, asked.stderr) == (1, done.stderr)
        plain.env["GHOSTBOX_RUNTIME_DIR"] += "/another"
        gone = ghostbox(plain, "token", "create")
        assert gone.returncode == 3
        assert "error: memserver 'donor' has no socket at " in gone.stderr


# --- starts ---


def _on_a_terminal(tmp_path: Path, runtime: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a secure donor on a terminal; return it, and what it has said when it serves."""
    env = donor_environment(tmp_path, runtime)
    words = ["memserver", "--name", "donor", "--size", "8M", "--reserve", "0", "--port", "0", "--control-port", "0"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ghostbox.cli.main", *words, "--secure"], env=env, stdout=follower, stderr=follower
    )
    os.close(follower)
    said = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while b"data plane pid" not in said or (b"to pair" in said and not said.endswith(b"\n")):
            said += os.read(leader, 4096)
    process.terminate()
    with contextlib.suppress(OSError):
        while more := os.read(leader, 4096):
            said += more
    os.close(leader)
    return process, said.decode().replace("\r", "")


def test_a_terminal_gets_the_line_that_pairs_a_first_host_and_a_log_does_not(
    tmp_path: Path, donor: RunningDonor
) -> None:
    with tempfile.TemporaryDirectory(prefix="gb-") as runtime:
        process, said = _on_a_terminal(tmp_path / "other", Path(runtime))
        assert process.wait(30) == 0
    line = re.search(r"to pair a host, run there within 10 min 0 s:\n  ghostbox donor add (gbt1_\S+)\n", said)
    assert line is not None, said
    assert re.fullmatch(r"127\.0\.0\.1:\d+", token.parse(line[1]).addresses[0])
    assert "no host is paired with this donor so far: ghostbox token create" in donor.stderr()
    assert "gbt1_" not in donor.stderr()


def test_a_copied_state_directory_has_another_certificate_and_no_clients(donor: RunningDonor) -> None:
    host = pair(new_token(donor))
    before = paired.fingerprint(donor.address)
    donor.kill_control_plane()
    processes.terminate(donor.data_plane_pid)
    identity = donor.state_dir / "identity.json"
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "machine": "another"}))
    donor.restart()
    assert paired.fingerprint(donor.address) != before
    assert "is of another memserver: put aside as" in donor.stderr()
    with Host(donor.address, host.client, host.credential).http() as http:
        assert http.get("/v1/status").status_code == 401


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_damaged_file_of_clients_keeps_the_donor_from_starting_and_a_missing_one_is_reported(
    donor: RunningDonor, damage: str
) -> None:
    host = pair(new_token(donor))
    lend(host, "one")
    donor.kill_control_plane()
    file = donor.state_dir / "clients.sqlite3"
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
        donor.restart()
        assert "clients.sqlite3 is gone: no host is paired with this donor any more" in donor.stderr()
        assert donor.ready["leases"] == 1  # memory that a VM uses is not released
        assert status_of(Host(donor.address, host.client, host.credential)) == (401, "not-paired")
        return
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match="ended with status 1") as caught:
        donor.restart()
    assert f"cannot use {file}: database disk image is malformed" in str(caught.value)
    file.write_bytes(whole)
    donor.restart()
    assert status_of(Host(donor.address, host.client, host.credential))[0] == 200


@pytest.mark.parametrize("first", ["secure", "plain"])
def test_leases_with_keys_and_leases_without_do_not_share_a_donor(tmp_path: Path, first: str) -> None:
    with running_donor(tmp_path, secure="" if first == "secure" else None) as donor:
        if first == "secure":
            lend(pair(new_token(donor)), "one")
        else:
            body = {"name": "one", "size_bytes": MIB, "holder": {"host": "tower", "vm": "ana"}}
            assert httpx.post(f"http://{donor.address}/v1/leases", json=body).status_code == 201
        donor.kill_control_plane()
        kept = list(donor.argv)
        donor.argv = [word for word in kept if word != "--secure"] + ([] if first == "secure" else ["--secure"])
        how, keep = ("over TLS", "--secure") if first == "secure" else ("without TLS", "--insecure")
        with pytest.raises(RuntimeError, match=f"it serves its leases {how}") as caught:
            donor.restart()
        assert f"to keep it: {keep}; or get its memory back first" in " ".join(str(caught.value).split())
        donor.argv = kept
        donor.restart()
        assert (donor.ready["leases"], donor.ready["adopted"]) == (1, True)


# --- secrets ---


def test_no_secret_is_in_a_log_an_answer_to_others_or_json(donor: RunningDonor) -> None:
    text = new_token(donor)
    given = token.parse(text)
    host = pair(text)
    key = lend(host, "one").json()["tls_psk"]
    with connect(donor.address, {"Authorization": f"Bearer {'0' * 16}.{host.credential}"}) as http:
        http.get("/v1/status")
    with host.http() as http:
        http.post("/v1/leases", json={"name": key, "size_bytes": "x", "holder": {}})
    commands = [
        ("token", "list"),
        ("memserver", "clients"),
        ("memserver", "audit"),
        ("memserver", "drain", "--no-wait"),
        ("memserver", "suspend", "tower"),
        ("memserver", "resume", "tower"),
    ]
    shown = [ghostbox(donor, *words, "--json") for words in commands]
    assert all(done.returncode == 0 for done in shown)
    texts = [done.stdout + done.stderr for done in shown] + [donor.stderr()]
    texts += [path.read_text() for pattern in ("*.log", "audit*") for path in donor.state_dir.glob(pattern)]
    secrets = [text, text.removeprefix("gbt1_")[60:80], given.secret.hex(), host.credential, key]
    for each in texts:
        assert not [secret for secret in secrets if secret in each]
    argv = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in argv for secret in secrets if secret.encode() in line]
    files = {path.name: path.stat().st_mode & 0o777 for path in donor.state_dir.iterdir() if path.is_file()}
    assert {name for name, mode in files.items() if mode != 0o600} == set()
