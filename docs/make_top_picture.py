# SPDX-License-Identifier: MIT
"""Make docs/top.svg, a still of `ghostbox top`, from a real pager with two memory servers on this machine.

Run this after `./bootstrap test` has run once (it builds the program in the place of the VM):

    GHOSTBOX_BUILD_DIR=.bootstrap/build .venv/bin/python docs/make_top_picture.py
"""

from __future__ import annotations

import dataclasses
import io
import re
import sys
import time
from pathlib import Path

from ghostbox.cli import rates
from ghostbox.cli.top import screen
from ghostbox.pager import page_map
from ghostbox.pager.model import PagerStatus
from ghostbox.terminal import PlainConsole

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from helpers.pager import memory_client, running_memserver, running_pager  # noqa: E402 - found by the path above

PAGES = 65536  # 256 MiB
FILLED, USED = 49152, 14336
INTERVAL_S = 2.0


def sampled() -> rates.Sample:
    """Return the pager's rates while a program reads and writes 56 MiB on a cache of 48 MiB."""
    with (
        running_memserver(a="128M") as attic,
        running_memserver(a="128M") as tower,
        running_pager([attic.uri("a"), tower.uri("a")], cache="48M") as pager,
        memory_client("256M", pager) as client,
    ):
        client.command("fill", seed=1, first=0, n=FILLED)
        client.start("stress", first=0, n=USED, threads=2, write=10, seconds=6, fresh=0)
        time.sleep(2)
        before, before_s = PagerStatus.model_validate(pager.status()), time.monotonic()
        time.sleep(INTERVAL_S)
        after, after_s = PagerStatus.model_validate(pager.status()), time.monotonic()
        found = page_map.ask(pager.control)
        assert client.result("stress")["ok"]
        names = {attic.uri("a"): "attic:10810", tower.uri("a"): "tower:10810"}
    return dataclasses.replace(rates.rates("work", before, after, after_s - before_s, names), map=found)


def drawn(sample: rates.Sample) -> str:
    """Return the screen of a terminal of 80 × 24 as an SVG without external fonts."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = PlainConsole(file=stream, width=80, height=24, record=True, force_terminal=True, color_system="truecolor")
    console.print(screen(sample, console))
    made = console.export_svg(title="ghostbox top", unique_id="top")
    made = re.sub(r"@font-face \{.*?\}\s*", "", made, flags=re.DOTALL)
    return "".join(f"{line.rstrip()}\n" for line in made.splitlines())


if __name__ == "__main__":
    (HERE / "top.svg").write_text(drawn(sampled()), encoding="utf-8")
    sys.stdout.write("made docs/top.svg\n")
