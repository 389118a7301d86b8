# SPDX-License-Identifier: MIT
"""What ``up --dry-run`` shows of the image."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from ghostbox import config, plan
from ghostbox.cli import show
from ghostbox.paths import Paths
from ghostbox.placement import Offer
from ghostbox.plan import BootPlan, HostFacts, ImagePlan, Virt
from ghostbox.units import GIB

IMAGE = ImagePlan("debian", Path("/i/disk.qcow2"), BootPlan())


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
    facts = HostFacts(
        virt=Virt.KVM,
        virt_reason="a 64-bit probe guest ran",
        uuid="11111111-2222-3333-4444-555555555555",
        mac="52:54:00:01:02:03",
        ssh_port=2222,
        offers=(Offer("a", 16 * GIB),),
        image=dataclasses.replace(IMAGE, **changes),  # type: ignore[arg-type]
        shim=Path("/s/shim.so"),
    )
    paths = Paths(Path("/s"), Path("/r"), Path("/c"), Path("/e"), Path("/n"))
    out = io.StringIO()
    Console(file=out, width=200).print(show.plan(plan.make(config.load({}), paths, facts)))
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("disk"))
    assert line.split(" on image ")[1].rstrip() == shown
