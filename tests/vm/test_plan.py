# SPDX-License-Identifier: MIT
"""``ghostbox plan`` predicts from the measurements of ``donor bench``, and says so where no measurement exists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.donor import RunningDonor, running_donor
from helpers.lab import Host, lab
from helpers.netns import machines

pytestmark = pytest.mark.timeout(120)
SIZES = ("--memory", "256M", "--remote-memory", "128M", "--cache", "16M")


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="256M") as running:
        yield running


@pytest.fixture
def host() -> Iterator[Host]:
    with lab() as made:
        yield made


def test_a_link_that_was_not_measured_is_assumed_and_the_plan_says_how_to_measure_it(
    host: Host, donor: RunningDonor
) -> None:
    done = host.cli("plan", "box", *SIZES, "--donor", donor.address, check=True)
    text = " ".join(done.stdout.split())
    assert "expected in part assumed, not measured" in text
    assert "fault about 160 µs (p50), 180 µs (mean)" in text
    assert f"to measure: ghostbox donor bench {donor.address}" in text
    assert f"over {donor.address}: 150 µs, 106.8 MiB/s, assumed" in text
    assert "× at 75 %" in text


def test_a_measured_link_is_what_the_plan_predicts_from(host: Host, donor: RunningDonor) -> None:
    measured = json.loads(host.cli("donor", "bench", donor.address, "--json", check=True).stdout)
    link, costs = measured["donors"][0]["link"], measured["host"]
    for words in (("plan", "box"), ("up", "box", "--dry-run")):
        done = host.cli(*words, *SIZES, "--donor", donor.address, "--json", check=True)
        forecast = json.loads(done.stdout)["forecast"]
        assert forecast["assumed"] is False
        assert forecast["links"] == [link]
        assert forecast["host"] == costs
        assert forecast["fault_us"] == pytest.approx(link["rtt_p50_us"] + costs["fault_us"])
        assert [each["locality_percent"] for each in forecast["slowdowns"]] == [75, 50, 25]
        uses = {(each["name"], each["factor"]): each["waits"] for each in json.loads(done.stdout)["uses"]}
        assert 0.0 < uses["Zipf 0.9", 1.2] < uses["Zipf 0.9", 2.0] < uses["at random", 2.0] < 1.0
    shown = " ".join(host.cli("plan", "box", *SIZES, "--donor", donor.address, check=True).stdout.split())
    assert "expected from measurements" in shown
    assert f"measured {link['measured_at']}" in shown
    assert "ghostbox donor bench" not in shown


def test_plan_takes_what_up_takes_and_does_nothing(host: Host, donor: RunningDonor) -> None:
    before = host.belongings([donor])
    extra = host.root / "extra.yaml"
    extra.write_text("#cloud-config\n")
    more = ["--cpus", "3", "--disk", "8G", "--image", "debian", "-p", "28080:80", "--cloud-init", str(extra)]
    done = host.cli("plan", "box", *SIZES, *more, "--donor", donor.address, "-o", "yaml", check=True)
    assert "cpus: 3" in done.stdout
    assert "forecast:" in done.stdout
    assert host.belongings([donor]) == before


def test_a_plan_that_cannot_work_is_refused(host: Host, donor: RunningDonor) -> None:
    done = host.cli("plan", "box", *SIZES[:2], "--remote-memory", "512M", "--cache", "16M", "--donor", donor.address)
    assert done.returncode == 5
    assert "offers 256 MiB, the VM needs 512 MiB" in done.stderr


def test_a_login_name_that_the_guests_system_has_given_away_is_refused(host: Host, donor: RunningDonor) -> None:
    for words in (("plan", "box"), ("up", "box")):
        done = host.cli(*words, *SIZES, "--user", "games", "--donor", donor.address)
        assert done.returncode == 2
        assert "error: vm.user cannot be 'games': the guest's system has an account of that name" in done.stderr
    assert "box" not in host.cli("list").stdout
    assert host.cli("set", "box", "--user", "ana").returncode == 4, "there is no such VM"


def test_a_donor_on_another_machine_that_is_not_paired_is_used_only_if_the_user_says_so(
    host: Host, tmp_path: Path
) -> None:
    with (
        machines(1) as (machine,),
        running_donor(tmp_path, size="256M", prefix=machine.prefix, bind=machine.address, insecure="") as far,
    ):
        words = ("plan", "box", *SIZES, "--donor", far.address)
        refused = host.cli(*words)
        assert refused.returncode == 1
        assert f"error: donor {far.address} is not paired with this host" in refused.stderr
        assert far.address in host.cli(*words, "--insecure", check=True).stdout
