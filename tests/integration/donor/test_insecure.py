# SPDX-License-Identifier: MIT
"""A donor on another machine that is not paired is used only if the user says ``--insecure``, and status reminds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ghostbox.donors.trust import PAIR_HINT
from helpers.donor import RunningDonor, running_donor
from helpers.netns import machines


@dataclass(frozen=True)
class Far:
    """Is a donor without encryption on another machine, and the environment of a host."""

    donor: RunningDonor

    def cli(self, *words: str, **env: str) -> tuple[int, str, str]:
        """Run a command; return exit code, stdout, and stderr on one line."""
        argv = [sys.executable, "-m", "ghostbox", *words]
        done = subprocess.run(
            argv, env={**self.donor.env, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    with (
        machines(1) as (machine,),
        running_donor(
            tmp_path_factory.mktemp("far"), prefix=machine.prefix, bind=machine.address, insecure="", name="attic"
        ) as donor,
    ):
        yield Far(donor)


@pytest.mark.parametrize("words", [("info",), ("leases",), ("list",), ("bench",), ("add",), ("release", "one")])
def test_without_consent_the_donor_is_not_asked_and_with_it_is(far: Far, words: tuple[str, ...]) -> None:
    command = ("donor", words[0], far.donor.address, *words[1:])
    code, _, err = far.cli(*command)
    assert code != 0
    assert f"donor {far.donor.address} is not paired with this host" in err
    assert f"{PAIR_HINT}; or, on a network that you trust wholly, add --insecure" in err
    code, _, err = far.cli(*command, "--insecure")
    if words[0] == "release":
        assert "no lease named 'one'" in err
    else:
        assert code == 0, err


def test_the_channel_is_shown(far: Far) -> None:
    code, out, _ = far.cli("donor", "list", far.donor.address, "--insecure", "--json")
    assert (code, json.loads(out)[0]["channel"]) == (0, "insecure")
    _, out, _ = far.cli("donor", "list", far.donor.address, "--insecure")
    assert out.split()[-2:] == ["insecure", "-"]
    _, out, _ = far.cli("donor", "list", far.donor.address, "--json")
    assert json.loads(out)[0]["channel"] is None
    _, out, _ = far.cli("donor", "info", far.donor.address, "--json", "--insecure")
    assert json.loads(out)["channel"] == "insecure"
    _, out, _ = far.cli(
        "doctor", "--role", "host", "--json", GHOSTBOX_POOL_INSECURE="1", GHOSTBOX_POOL_DONORS=far.donor.address
    )
    assert "neither encrypted nor protected (pool.insecure)" in out


def test_forgetting_it_takes_no_consent(far: Far) -> None:
    assert far.cli("donor", "add", far.donor.address, "--insecure")[0] == 0
    code, _, err = far.cli("donor", "forget", "attic")
    assert (code, err) == (0, f"donor {far.donor.address} is forgotten")
