# SPDX-License-Identifier: MIT
"""The ``ghostbox donor`` commands work against real donors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.session import unreleased
from ghostbox.session.record import LeaseRecord
from ghostbox.units import MIB
from helpers import forked
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import held_connection


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="64M") as running:
        yield running


def _donor(running: RunningDonor, *words: str, **env: str) -> tuple[int, str, str]:
    """Run ``ghostbox donor …``; return exit code, stdout, and stderr on one line."""
    done = forked.run_with({**running.env, **env}, "donor", *words)
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def _lease(running: RunningDonor, name: str) -> None:
    with DonorClient(running.address) as client:
        client.create_lease(name, 4 * MIB, Holder("tower", "ana"))


def test_list_shows_what_donors_offer(donor: RunningDonor) -> None:
    code, out, _ = _donor(donor, "list", donor.address)
    assert code == 0
    assert out.split()[:7] == ["address", "name", "state", "size", "free", "resident", "leases"]
    assert f"{donor.address} donor up 64 MiB" in " ".join(out.split())


def test_list_takes_the_donors_of_the_configuration(donor: RunningDonor) -> None:
    code, out, _ = _donor(donor, "list", "--json", GHOSTBOX_POOL_DONORS=donor.address)
    assert code == 0
    assert json.loads(out)[0]["status"]["name"] == "donor"


def test_list_without_any_donor_says_what_to_do(donor: RunningDonor) -> None:
    code, _, err = _donor(donor, "list")
    assert code == 2
    fix = "add one: ghostbox donor add TOKEN; or name donors, or set pool.donors in the configuration"
    assert err == f"error: no donor is known fix: {fix}"


def test_a_donor_is_noted_named_and_forgotten(donor: RunningDonor) -> None:
    code, out, _ = _donor(donor, "add", donor.address)
    assert code == 0
    assert out.startswith(f"noted: donor 'donor' at {donor.address}, ")
    assert out.endswith(" of 64 MiB are free; `ghostbox up` uses it\n")
    assert _donor(donor, "add", "donor")[1].startswith("known already: donor 'donor' at ")
    code, out, _ = _donor(donor, "list", "--json")
    assert (code, [(row["address"], row["known"]) for row in json.loads(out)]) == (0, [(donor.address, True)])
    assert json.loads(_donor(donor, "info", "donor", "--json")[1])["nbd_port"] == donor.nbd_port
    code, _, err = _donor(donor, "add", donor.address, "--size", "1M")
    assert code == 3
    assert f"error: no VM 'ghostbox' runs that could borrow from donor {donor.address}" in err
    assert _donor(donor, "add", donor.address, "--more")[0] == 3
    assert _donor(donor, "forget", "donor", "--write-off") == (
        0,
        "",
        f"donor {donor.address} is forgotten 0 leases there are written off",
    )
    code, _, err = _donor(donor, "forget", "donor")
    assert (code, err) == (4, "error: no donor 'donor' is known fix: ghostbox donor list")


def test_what_a_donor_of_before_may_still_hold_is_shown_until_it_is_written_off(
    donor: RunningDonor, tmp_path: Path
) -> None:
    state = tmp_path / "host"
    lease = LeaseRecord("127.0.0.1:1", "w-1", 8 * MIB, donor_name="attic")
    unreleased.note(state, "work", lease, "cannot reach it")
    env = {"GHOSTBOX_STATE_DIR": str(state)}
    code, out, err = _donor(donor, "list", **env)
    assert (code, "former" in out) == (0, True)
    assert "donor 127.0.0.1:1 may still hold 8 MiB of VM 'work' (lease w-1), not released since " in err
    assert "if the donor is gone for good: ghostbox donor forget 127.0.0.1:1 --write-off" in err
    code, _, err = _donor(donor, "forget", "attic", "--write-off", **env)
    assert (code, "Give up 1 leases (8 MiB) that donor attic may still hold?" in err) == (2, True)
    assert _donor(donor, "forget", "attic", "--write-off", "--yes", **env)[0] == 0
    assert unreleased.load(state) == ()


def test_list_shows_the_others_when_one_does_not_answer(donor: RunningDonor) -> None:
    code, out, err = _donor(donor, "list", donor.address, "127.0.0.1:1", "-o", "yaml")
    assert code == 6
    rows = yaml.safe_load(out)
    assert [row["status"] and row["status"]["name"] for row in rows] == ["donor", None]
    assert rows[1]["error"] == "cannot reach donor 127.0.0.1:1"
    assert "error: 1 of 2 donors do not answer why: cannot reach donor 127.0.0.1:1: connection refused" in err
    code, out, _ = _donor(donor, "list", "127.0.0.1:1")
    assert (code, "no answer" in out) == (6, True)


def test_info_shows_one_donor(donor: RunningDonor) -> None:
    code, out, _ = _donor(donor, "info", donor.address, "-o", "json")
    assert code == 0
    assert json.loads(out)["nbd_port"] == donor.nbd_port
    code, out, _ = _donor(donor, "info", donor.address)
    assert (code, "size 64 MiB" in " ".join(out.split())) == (0, True)


def test_leases_shows_holders(donor: RunningDonor) -> None:
    _lease(donor, "shown")
    code, out, _ = _donor(donor, "leases", donor.address)
    assert code == 0
    assert "shown tower/ana 4 MiB 0 B 0 " in " ".join(out.split())
    code, out, _ = _donor(donor, "leases", donor.address, "--json")
    assert json.loads(out)[0]["holder"] == {"host": "tower", "vm": "ana"}


def test_release_needs_yes_without_a_terminal(donor: RunningDonor) -> None:
    _lease(donor, "kept")
    code, _, err = _donor(donor, "release", donor.address, "kept")
    assert code == 2
    assert "Release 4 MiB held by tower/ana?" in err
    assert "fix: add --yes" in err
    assert _donor(donor, "release", donor.address, "kept", "-y")[0] == 0
    code, _, err = _donor(donor, "release", donor.address, "kept", "-y")
    assert code == 4
    assert "no lease named 'kept'" in err


def test_release_of_a_lease_in_use_needs_force(donor: RunningDonor) -> None:
    _lease(donor, "used")
    with held_connection(donor.uri("used")):
        code, _, err = _donor(donor, "release", donor.address, "used", "--yes")
        assert code == 1
        assert "fix: stop the VM that uses it, or force the release: its memory is lost then" in err
        assert _donor(donor, "release", donor.address, "used", "--yes", "--force")[0] == 0
