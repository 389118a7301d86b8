# SPDX-License-Identifier: MIT
"""The shell offers the names that exist: VMs, images, donors, keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from helpers.stopped import here, stopped_vm

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def offered(ghostbox_dirs: Path, quick_cli: Cli) -> Callable[[str, str], set[str]]:
    """Return the words that a shell offers after a line; there are two VMs, an image, two donors and two memservers."""
    stopped_vm("work")
    stopped_vm("play")
    here().images.mkdir(parents=True)
    (here().images / "ubuntu.json").write_text("{}")
    for name in ("shelf", "rack"):
        here().memserver_state(name).mkdir(parents=True)
        (here().memserver_state(name) / "identity.json").write_text("{}")
    (ghostbox_dirs / "ghostbox.yaml").write_text("pool: {donors: [tower]}\n")
    (here().state / "known-donors.json").write_text(json.dumps({"format": 1, "donors": [{"address": "attic"}]}))

    def complete(line: str, shell: str = "bash") -> set[str]:
        words = line.split(" ")
        env = {"_GHOSTBOX_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        if shell == "fish":
            env["COMP_CWORD"] = words[-1]
        said = quick_cli(env=env).stdout.splitlines()
        if shell == "zsh":
            return set(said[1::3])
        return {line.partition(",")[2].partition("\t")[0] for line in said}

    return complete


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("ghostbox down ", {"work", "play"}),
        ("ghostbox ssh w", {"work"}),
        ("ghostbox config show --vm p", {"play"}),
        ("ghostbox up --image ", {"debian", "ubuntu"}),
        ("ghostbox image delete u", {"ubuntu"}),
        ("ghostbox up --donor ", {"tower", "attic"}),
        ("ghostbox donor drain t", {"tower"}),
        ("ghostbox set work vm.mem", {"vm.memory="}),
        ("ghostbox set --unset pool.sl", {"pool.slow"}),
        ("ghostbox memserver audit --name ", {"shelf", "rack"}),
        ("ghostbox memserver drain --name r", {"rack"}),
        ("ghostbox token create --name r", {"rack"}),
        ("ghostbox memserver a", {"audit"}),
    ],
)
def test_names_are_completed(offered: Callable[..., set[str]], line: str, names: set[str]) -> None:
    assert offered(line) == names


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_shell_hears_the_names(offered: Callable[..., set[str]], shell: str) -> None:
    assert offered("ghostbox start ", shell) == {"work", "play"}


def test_what_cannot_be_read_offers_nothing_and_disturbs_nobody(offered: Callable[..., set[str]]) -> None:
    (here().state / "known-donors.json").write_text("nonsense")
    assert offered("ghostbox up --donor ") <= {""}
