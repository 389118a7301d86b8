# SPDX-License-Identifier: MIT
"""The still of ``top`` in the README can be made anew."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET

from helpers import project
from helpers.devices import need_device


def test_the_still_of_top_is_made_of_a_pager_at_work() -> None:
    need_device("/dev/userfaultfd")
    script = runpy.run_path(str(project.ROOT / "docs" / "make_top_picture.py"))
    sample = script["sampled"]()
    assert sample.fetched_per_s > 0
    words = " ".join(ET.fromstring(script["drawn"](sample)).itertext()).replace("\xa0", " ")
    for word in ("attic:10810", "tower:10810", "node 1, a character for"):
        assert word in words
