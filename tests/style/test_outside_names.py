# SPDX-License-Identifier: MIT
"""The project names no machine and no registry: each machine's own configuration says where packages come from."""

from __future__ import annotations

import re

from helpers import project

# The names are written in pieces, so that the test does not find this file.
_REGISTRIES = (
    ("deb", "debian", "org"),
    ("security", "debian", "org"),
    ("snapshot", "debian", "org"),
    ("cloud", "debian", "org"),
    ("ftp", "debian", "org"),
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("registry", "npmjs", "org"),
    ("archive", "ubuntu", "com"),
)
_PLACES = re.compile(r"(?<![\w.])/work" + r"/|/home/[a-z]+/")


def test_no_registry_is_named() -> None:
    names = [".".join(parts) for parts in _REGISTRIES]
    wrong = [f"{place}: {name}" for place, text in _texts() for name in names if name in text]
    assert not wrong, "\n".join(wrong)


def test_no_path_of_one_machine_is_named() -> None:
    wrong = [f"{place}: {found}" for place, text in _texts() for found in _PLACES.findall(text)]
    assert not wrong, "\n".join(wrong)


def _texts() -> list[tuple[str, str]]:
    return [(project.shown(path), path.read_text(encoding="utf-8", errors="replace")) for path in project.files()]
