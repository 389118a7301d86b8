# SPDX-License-Identifier: MIT
"""root's script in the guest moves pages between the guest's nodes. The guests of ``tests/vm`` run the script."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter

from ghostbox.config.tiering import CHOICES, How
from ghostbox.plan.tiering import Tiering, choose

OFF = "echo 0 > /proc/sys/kernel/numa_balancing || true; echo false > /sys/kernel/mm/numa/demotion_enabled"


@pytest.mark.parametrize("wanted", CHOICES)
@pytest.mark.parametrize("emulated", [True, False])
def test_script_is_one_that_its_shells_can_read(wanted: str, emulated: bool) -> None:
    script = choose(wanted, emulated=emulated).script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    if "<< 'END'" in script:
        loop = script.partition("<< 'END'\n")[2].partition("\nEND\n")[0]
        subprocess.run(["bash", "-n"], input=loop, text=True, check=True)
    assert not {"OTHERWISE", "EMULATED", "RATE"} & set(script.replace("(", " ").replace(":", " ").split())


def test_kernel_without_damon_falls_back_as_the_machine_allows() -> None:
    """The guest reports the way.

    With KVM it is NUMA balancing. An emulated guest moves no pages, which is cheaper.
    """
    kvm, emulated = (choose("auto", emulated=emulated).script for emulated in (False, True))
    assert 'said "NUMA balancing: this kernel has no DAMON that moves young pages (Linux 6.11)"' in kvm
    assert kvm.count("echo 2 > /proc/sys/kernel/numa_balancing") == 2  # without DAMON, and without systemd
    assert 'said "off: this kernel has no DAMON that moves young pages (Linux 6.11)"' in emulated
    assert emulated.count(OFF) == 2


def test_emulated_processors_are_made_to_see_the_accessed_bit_again() -> None:
    assert "if [ yes = yes ]; then forget_translations; fi" in choose("auto", emulated=True).script
    assert "if [ no = yes ]; then forget_translations; fi" in choose("auto", emulated=False).script


def test_tiering_outlives_a_record() -> None:
    form = TypeAdapter(Tiering)
    for wanted in CHOICES:
        chosen = choose(wanted, emulated=False)
        assert form.validate_python(json.loads(json.dumps(asdict(chosen)))) == chosen
    earlier = form.validate_python({"on": True, "why": "KVM", "promote_mib_per_s": 3})
    assert (earlier.how, str(earlier)) == (How.NUMA, "NUMA balancing: KVM; promotes at most 3 MiB/s")
