# SPDX-License-Identifier: MIT
"""A host and secure donors are paired by a token, memory goes over TLS, and each refusal says what mends it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from ghostbox import pager, paths
from ghostbox.cli.output import plain
from ghostbox.donors import pairings, token, trust
from ghostbox.donors.client import DonorClient, host_name
from ghostbox.donors.models import Holder, PairingRequest
from ghostbox.errors import Untrusted
from ghostbox.session import pool, view
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import ROOT, RunningDonor, running_donor
from helpers.ports import free_port
from helpers.reconcile_lab import laboratory, leases_of
from helpers.secure_host import Host, create_token, owner, run

pytestmark = pytest.mark.timeout(240)
DAY_S = 86400.0


@pytest.fixture
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    """Yield a donor of the test's own: it lets this machine try to pair ten times, and then once in six seconds."""
    with running_donor(tmp_path_factory.mktemp("donor"), name="attic", secure="") as running:
        yield running


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "other").mkdir()
    return Host(tmp_path / "host")


def test_a_pasted_token_pairs_and_from_then_on_the_donor_has_a_name(donor: RunningDonor, host: Host) -> None:
    code, out, err = host.cli("donor", "add", create_token(donor, "--max-memory", "8M"))
    assert (code, out.strip()) == (
        0,
        f"paired: donor 'attic' at {donor.address}, over TLS, 8 MiB of 64 MiB are free; `ghostbox up` uses it",
    ), err
    [row] = host.json("donor", "list")
    assert (row["address"], row["channel"], row["known"], row["error"]) == (donor.address, "tls", True, None)
    assert (row["status"]["role"], row["status"]["limits"]["memory_bytes"]) == ("user", 8 * MIB)
    assert "  user" in host.cli("donor", "list")[1]
    shown = host.cli("donor", "info", "attic")[1].split()
    assert " ".join(shown[shown.index("role") :]).startswith(
        "role user leases at most 64 memory at most 8 MiB connections at most 256 bandwidth at most no limit"
    )
    assert host.json("donor", "info", "attic")["channel"] == "tls"
    assert host.json("donor", "leases", "attic") == []
    [kept] = host.pairings()
    assert (kept["max_memory_bytes"], kept["role"], kept["addresses"]) == (8 * MIB, "user", [donor.address])
    used = [each["used_by"] for each in json.loads(owner(donor, "token", "list", "--json"))]
    assert kept["client"] in used
    code, _, err = host.cli("donor", "forget", "attic")
    assert (code, err) == (0, f"donor {donor.address} is forgotten the pairing with donor 'attic' is ended")
    assert host.pairings() == []
    code, _, err = host.cli("donor", "info", donor.address)
    assert f"donor {donor.address} serves only hosts that are paired with it, and this host is not" in err


def test_the_whole_line_that_the_donor_prints_may_be_pasted(donor: RunningDonor, host: Host) -> None:
    code, _, err = host.cli("donor", "add", "-", stdin=owner(donor, "token", "create"))
    assert code == 0, err


def test_the_memory_goes_over_tls_and_survives_drains_takeovers_and_new_donors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M", "96M", "96M"], secure=True, replicas=2) as lab:
        lab.client.command("fill", seed=7)
        found = view.with_names(lab.book.record, pool.status(lab.book))
        assert found is not None
        assert {donor.channel for donor in found.donors} == {"tls"}
        keys = lab.book.files.lease_keys
        assert keys.stat().st_mode & 0o777 == 0o600
        exports = {line.partition(":")[0] for line in keys.read_text().splitlines()}
        assert exports == {lease.name for lease in lab.book.record.leases}
        gone = lab.book.record.leases[0]
        pool.drain(lab.book, gone.donor)
        lab.until_mended()
        lab.client.command("verify", seed=7)
        assert f"{gone.name}:" not in keys.read_text()
        before = pool.status(lab.book).pid
        os.kill(before, signal.SIGKILL)

        def followed() -> bool:
            lab.reconciler.round()
            now = pager.status(lab.book.files.pager_control)
            return now is not None and now.pid != before

        processes.wait_until(followed, timeout_s=40, what="another pager")
        lab.until_mended()
        lab.client.command("verify", seed=7)
        pool.add(lab.book, gone.donor, 16 * MIB)
        lab.client.command("fill", seed=8)
        lab.until_mended()
        lab.client.command("verify", seed=8)
        assert all(str(lease.nbd_uri).startswith("nbds://") for lease in lab.book.record.leases)
        donors = lab.donors
        files = lab.book.files
    assert not files.lease_keys.exists()
    assert all(donor.process.poll() is not None for donor in donors)


def test_no_credential_and_no_key_is_on_a_command_line_in_a_log_or_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"], secure=True) as lab:
        lab.client.command("fill", seed=1)
        assert lab.reconciler.round()
        [pairing] = pairings.load(lab.paths)
        [line] = lab.book.files.lease_keys.read_text().splitlines()
        key = line.partition(":")[2]
        host = Host(tmp_path / "host")
        env = {**host.env, "GHOSTBOX_STATE_DIR": str(lab.paths.state), "GHOSTBOX_RUNTIME_DIR": str(lab.paths.runtime)}
        said = []
        address = lab.donors[0].address
        commands = [("donor", word, address) for word in ("list", "info", "leases")]
        for words in commands:
            for more in (("--json",), ("-vv",)):
                done = run(env, *words, *more)
                said.append(done.stdout + done.stderr)
                assert done.returncode == 0, done.stderr
        said.append(json.dumps(plain([lab.book.record, pool.status(lab.book), lab.health()])))
        said += [path.read_bytes().decode(errors="replace") for path in _logs(lab.paths.state, tmp_path)]
        said.append((lab.book.files.state / "vm.json").read_text())
        said += _command_lines()
        for text in said:
            assert key not in text
            assert pairing.credential not in text


def _logs(*roots: Path) -> list[Path]:
    return [path for root in roots for pattern in ("*.log", "*.stderr", "*.jsonl") for path in root.rglob(pattern)]


def _command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


def test_a_donor_that_was_installed_again_is_refused_until_it_is_paired_again(tmp_path: Path, host: Host) -> None:
    port, control = str(free_port()), str(free_port())
    with running_donor(tmp_path, name="attic", secure="", port=port, control_port=control) as first:
        host.pair(first)
    shutil.rmtree(first.state_dir)
    with running_donor(tmp_path, name="attic", secure="", port=port, control_port=control) as second:
        code, _, err = host.cli("donor", "info", "attic")
        assert code != 0
        assert f"donor {second.address} has another key than the one that this host was paired with" in err
        assert f"fix: if it was installed again, pair again: {trust.PAIR_HINT}" in err
        host.pair(second)
        assert host.json("donor", "info", "attic")["channel"] == "tls"
        assert len(host.pairings()) == 1


def test_a_host_that_pairs_again_keeps_its_leases_under_a_new_credential(
    donor: RunningDonor, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.pair(donor)
    for kind in ("STATE", "RUNTIME", "CACHE"):
        monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", str(host.root / kind.lower()))
    [before] = pairings.load(paths.find())
    with DonorClient(donor.address) as client:
        made = client.create_lease("again", MIB, Holder("tower", "box"))
    text = create_token(donor, "--max-memory", "8M")
    assert host.cli("donor", "add", text)[0] == 0
    assert host.cli("donor", "add", text)[0] == 0, "the same token again changes nothing"
    [after] = pairings.load(paths.find())
    assert (after.client, after.max_memory_bytes) == (before.client, 8 * MIB)
    with DonorClient(donor.address) as client:
        assert client.lease("again").incarnation == made.incarnation
    with DonorClient(donor.address, channel=trust.to_paired(before)) as client, pytest.raises(Untrusted):
        client.lease("again")


def test_a_host_that_pairs_again_after_its_pairing_was_ended_is_a_new_client(donor: RunningDonor, host: Host) -> None:
    host.pair(donor)
    [before] = host.pairings()
    owner(donor, "memserver", "revoke", before["client"], "-y")
    host.pair(donor)
    [after] = host.pairings()
    assert after["client"] != before["client"]
    assert host.json("donor", "info", "attic")["channel"] == "tls"


def test_a_suspended_host_is_told_so_until_it_may_go_on_and_a_revoked_one_for_good(
    donor: RunningDonor, host: Host
) -> None:
    host.pair(donor)
    [pairing] = host.pairings()
    owner(donor, "memserver", "suspend", pairing["client"])
    _, _, err = host.cli("donor", "info", "attic")
    assert f"donor {donor.address} has suspended this host" in err
    assert f"on the donor: ghostbox memserver resume {host_name()}" in err
    owner(donor, "memserver", "resume", pairing["client"])
    assert host.json("donor", "info", "attic")["name"] == "attic"
    owner(donor, "memserver", "revoke", pairing["client"], "-y")
    _, _, err = host.cli("donor", "info", "attic")
    assert f"donor {donor.address} has revoked the pairing with this host" in err
    code, _, err = host.cli("donor", "forget", "attic")
    assert (code, host.pairings()) == (0, [])


def test_a_host_that_was_installed_again_pairs_again(donor: RunningDonor, host: Host) -> None:
    host.pair(donor)
    shutil.rmtree(host.root / "state")
    _, _, err = host.cli("donor", "info", donor.address)
    assert f"fix: ask its owner to pair: ghostbox donor add {donor.address}; or by a token: {trust.PAIR_HINT}" in err
    host.pair(donor)
    assert host.json("donor", "info", "attic")["name"] == "attic"


def test_a_donor_that_has_paired_a_host_whose_command_was_killed_is_paired_by_its_repetition(
    donor: RunningDonor, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = create_token(donor)
    for kind in ("STATE", "RUNTIME", "CACHE"):
        monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", str(host.root / kind.lower()))
    own = paths.find()
    given = token.parse(text)
    pending = pairings.begin(own, given)
    request = PairingRequest(
        token_id=pending.token_id,
        secret=given.secret.hex(),
        credential_sha256=hashlib.sha256(bytes.fromhex(pending.credential)).hexdigest(),
        host=host_name(),
        host_id=pairings.host_id(own),
        version="0",
    )
    with DonorClient(donor.address, channel=trust.to_be_paired(pending.fingerprint)) as client:
        answer = client.pair(request)  # and here the command is killed
    code, _, err = host.cli("donor", "add", text)
    assert code == 0, err
    assert [each["client"] for each in host.pairings()] == [answer.client]


def test_a_token_is_for_one_host_and_once(donor: RunningDonor, host: Host, tmp_path: Path) -> None:
    text = create_token(donor)
    assert host.cli("donor", "add", text)[0] == 0
    assert host.cli("donor", "add", text)[0] == 0, "the same host may repeat it"
    code, _, err = Host(tmp_path / "other host").cli("donor", "add", text)
    assert code == 1
    assert f"error: donor {donor.address}: the token was used already" in err
    assert "ghostbox token create" in err


def test_a_donor_that_is_away_is_forgotten_here_and_said_so(tmp_path: Path, host: Host) -> None:
    with running_donor(tmp_path, name="shed", secure="") as gone:
        host.pair(gone)
    code, _, err = host.cli("donor", "forget", "shed")
    assert code == 0
    assert "donor 'shed' was not told and still knows this host; on the donor: ghostbox memserver revoke" in err
    assert host.pairings() == []


def test_a_pairing_that_a_running_vm_needs_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"], secure=True) as lab:
        env = {**os.environ, "GHOSTBOX_STATE_DIR": str(lab.paths.state)}
        done = run(env, "donor", "forget", "d0")
        assert done.returncode == 5
        assert "VM 'lab' runs and has" in done.stderr
        assert leases_of(lab.donors[0]) == 1


def clock_set_by(place: Path, seconds: float) -> dict[str, str]:
    """Return the environment in which the clock of the day of Python programs is wrong by so much."""
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        f"import time\nright = time.time\ntime.time = lambda: right() + {seconds}\n"
    )
    return {"PYTHONPATH": f"{place}:{ROOT}"}


def test_clocks_that_are_a_day_off_on_either_side_change_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path / "host", clock_set_by(tmp_path / "behind", -DAY_S))
    ahead = clock_set_by(tmp_path / "ahead", DAY_S)
    with running_donor(tmp_path, name="attic", secure="", env=ahead) as donor:
        host.pair(donor)
        assert host.json("donor", "info", "attic")["channel"] == "tls"
        made = {each["made_at"] for each in json.loads(owner(donor, "token", "list", "--json"))}
        assert all(datetime.fromisoformat(at).timestamp() > time.time() + DAY_S / 2 for at in made), made


def test_the_link_of_a_paired_donor_is_measured_over_tls(donor: RunningDonor, host: Host) -> None:
    host.pair(donor)
    [found] = host.json("donor", "bench", "attic")["donors"]
    assert found["link"]["rtt_p50_us"] > 0
    assert host.json("donor", "leases", "attic") == []
    assert list((host.root / "runtime").rglob("*.psk")) == []


def test_a_plain_donor_in_place_of_a_paired_one_gets_nothing(tmp_path: Path, host: Host) -> None:
    port, control = str(free_port()), str(free_port())
    with running_donor(tmp_path, name="attic", secure="", port=port, control_port=control) as secure:
        host.pair(secure)
    with running_donor(tmp_path / "other", name="attic", port=port, control_port=control) as plain:
        _, _, err = host.cli("donor", "info", "attic")
        assert f"donor {plain.address} is paired with this host, and now answers without TLS" in err
