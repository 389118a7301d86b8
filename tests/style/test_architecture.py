# SPDX-License-Identifier: MIT
"""ARCHITECTURE.md promises nothing that no test shows."""

from __future__ import annotations

import re

from helpers import project


def test_every_test_that_the_architecture_names_exists() -> None:
    text = (project.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    wrong = []
    for place, name in re.findall(r"(tests/[\w/]+\.\w+)(?:::(\w+))?", text):
        path = project.ROOT / place
        if not path.is_file():
            wrong.append(f"{place}: no such file")
        elif name and not re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")):
            wrong.append(f"{place}: no test {name}")
    assert not wrong, "\n".join(wrong)
