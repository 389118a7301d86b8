# SPDX-License-Identifier: MIT
"""``up --dry-run`` shows the image and the tiering that a VM gets."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Group

from ghostbox import config
from ghostbox.cli import show
from ghostbox.plan import plan
from ghostbox.plan.plan import BootPlan, HostFacts, ImagePlan, Virt
from ghostbox.plan.prediction import HostCosts, Link, predict
from ghostbox.plan.workloads import Expected
from ghostbox.terminal import PlainConsole
from helpers.facts import FACTS as HOST_FACTS
from helpers.facts import PATHS

IMAGE = ImagePlan("debian", Path("/i/disk.qcow2"), BootPlan())
FACTS = dataclasses.replace(HOST_FACTS, image=IMAGE)


def shown_line(key: str, facts: HostFacts) -> str:
    """Return the text beside ``key`` in the plan."""
    out = io.StringIO()
    PlainConsole(file=out, width=200).print(show.plan(plan.make(config.load({}), PATHS, facts)))
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith(key))
    return line.removeprefix(key).strip()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "debian"),
        ({"to_build": True, "suite": "trixie"}, "debian (to be built: trixie)"),
        (
            {"to_build": True, "suite": "forky", "packages": ("gdb", "htop")},
            "debian (to be built: forky with gdb, htop)",
        ),
        ({"outdated": True}, "debian (of another recipe than the present one)"),
    ],
)
def test_plan_says_what_image_it_takes_or_builds(changes: dict[str, object], shown: str) -> None:
    facts = dataclasses.replace(FACTS, image=dataclasses.replace(IMAGE, **changes))  # type: ignore[arg-type]
    assert shown_line("disk", facts).split(" on image ")[1] == shown


def test_plan_says_whether_there_is_tiering_and_why() -> None:
    assert shown_line("tiering", FACTS) == "DAMON: KVM; promotes at most 53 MiB/s"
    emulated = shown_line("tiering", dataclasses.replace(FACTS, virt=Virt.TCG))
    assert emulated == "DAMON: emulated; promotes at most 53 MiB/s"


def test_plan_says_in_everyday_terms_what_the_figures_mean() -> None:
    link = Link("198.51.100.123:10810", "2026-11-29", 90.0, 200.0, 100.0, read_bytes_per_s=1e9, write_bytes_per_s=1e9)
    found = predict({link.address: 32 << 30}, {link.address: link}, HostCosts("2026-11-29", 10.0, 15.0, 0.02))
    out = io.StringIO()
    PlainConsole(file=out, width=80).print(show.forecast(found, 7 << 30))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(out.getvalue().split())
    assert "in practice what fits into the 7 GiB here is as quick as ever a pass" in text
    assert "a pass over 3 GB of data there: 4.3 s instead of 1 10,000" in text
    assert "10,000 random look-ups in data there: 1.2 s instead of less than 0.1 fault" in text
    assert "locality: one thread that only touches memory, at random" in text


def test_plan_says_what_part_of_a_programs_accesses_waits_by_what_it_does() -> None:
    found = (
        Expected("hot 50 % of what is here", 1.2, 1, waits=0.0, second_chances=0.0, bytes_per_s=0.0, slowdown=1.0),
        Expected("at random", 1.2, 1, waits=0.3149, second_chances=0.0, bytes_per_s=0.0, slowdown=9.0),
        Expected("at random", 2.0, 1, waits=0.0547, second_chances=0.0, bytes_per_s=0.0, slowdown=9.0),
        Expected("in order", 1.2, 1, waits=0.6, second_chances=0.0, bytes_per_s=150 << 20, slowdown=9.0),
    )
    out = io.StringIO()
    PlainConsole(file=out, width=80).print(Group(*show.uses(found, 7 << 30)))
    text = " ".join(out.getvalue().split())
    assert "accesses that wait for a donor, of a program with 1.2 × and 2 × the 7 GiB here, settled:" in text
    assert "A PROGRAM THAT READS 1.2 × 2 × hot 50 % of what is here none at random 31% 5.5% in order 150 MiB/s" in text
    assert show.uses((), 7 << 30) == []


def test_what_is_as_quick_as_local_memory_is_not_frightening() -> None:
    link = Link("near", "2026-11-29", 1.0, 2.0, 1.0, read_bytes_per_s=90e9, write_bytes_per_s=90e9)
    found = predict({"near": 1 << 30}, {"near": link}, HostCosts("2026-11-29", 1.0, 1.0, 0.02))
    out = io.StringIO()
    PlainConsole(file=out, width=80).print(show.forecast(found, 7 << 30))
    assert "a pass over 3 GB of data there: 1.2 s instead of 1" in out.getvalue()
