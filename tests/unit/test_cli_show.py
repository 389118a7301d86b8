# SPDX-License-Identifier: MIT
"""What ``up --dry-run`` shows of the image and of tiering."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from ghostbox import config, plan
from ghostbox.cli import show
from ghostbox.plan import BootPlan, HostFacts, ImagePlan, Virt
from helpers.facts import FACTS as HOST_FACTS
from helpers.facts import PATHS

IMAGE = ImagePlan("debian", Path("/i/disk.qcow2"), BootPlan())
FACTS = dataclasses.replace(HOST_FACTS, image=IMAGE)


def shown_line(key: str, facts: HostFacts) -> str:
    """Return what stands beside ``key`` in the plan."""
    out = io.StringIO()
    Console(file=out, width=200).print(show.plan(plan.make(config.load({}), PATHS, facts)))
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
    assert shown_line("tiering", FACTS) == "on: KVM; promotes at most 8 MiB/s"
    assert shown_line("tiering", dataclasses.replace(FACTS, virt=Virt.TCG)) == "off: emulated"
