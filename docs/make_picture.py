# SPDX-License-Identifier: MIT
"""Make docs/picture.svg from docs/picture.txt: `python docs/make_picture.py`. A test checks that the two agree.

The text is drawn as it is: box-drawing characters and arrow heads become lines, other characters stay text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
CELL_WIDTH, CELL_HEIGHT = 8, 18
MARGIN = 12
# Each character draws lines from the middle of its cell to these sides.
SIDES = {
    "─": "lr",
    "│": "ud",
    "┌": "rd",
    "┐": "ld",
    "└": "ru",
    "┘": "lu",
    "├": "udr",
    "┤": "udl",
    "┬": "lrd",
    "┴": "lru",
    "┼": "lrud",
    "◄": "r",
    "►": "l",
}
STYLE = """\
text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2328; white-space: pre; }
path { stroke: #57606a; stroke-width: 1.5; fill: none; }
path.head { fill: #57606a; stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  path { stroke: #8b949e; }
  path.head { fill: #8b949e; }
}"""

Point = tuple[int, int]


def drawn(text: str) -> str:
    """Return the SVG of a drawing in text."""
    lines = text.rstrip("\n").split("\n")
    width = 2 * MARGIN + CELL_WIDTH * max(map(len, lines))
    height = 2 * MARGIN + CELL_HEIGHT * len(lines)
    parts = [f'<path d="M{x1} {y1}L{x2} {y2}"/>' for (x1, y1), (x2, y2) in _lines(lines)]
    parts += [f'<path class="head" d="{shape}"/>' for shape in _heads(lines)]
    parts += [
        f'<text x="{x}" y="{y}" textLength="{CELL_WIDTH * len(words)}">{escape(words)}</text>'
        for words, x, y in _texts(lines)
    ]
    title = "Donors lend memory over NBD to the pager on the host, which answers the page faults of the VM's node 1."
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [f'{head} role="img">', f"<title>{title}</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""]
    )


def _cells(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield each character that draws lines, with the middle of its cell."""
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            if character in SIDES:
                yield character, MARGIN + CELL_WIDTH * column + CELL_WIDTH // 2, _middle(row)


def _middle(row: int) -> int:
    return MARGIN + CELL_HEIGHT * row + CELL_HEIGHT // 2


def _lines(lines: list[str]) -> list[tuple[Point, Point]]:
    """Return the lines; lines that touch end to end are joined."""
    half, tall = CELL_WIDTH // 2, CELL_HEIGHT // 2
    level: dict[int, list[Point]] = {}
    upright: dict[int, list[Point]] = {}
    for character, x, y in _cells(lines):
        sides = SIDES[character]
        left, right = x - half * ("l" in sides), x + half * ("r" in sides)
        top, bottom = y - tall * ("u" in sides), y + tall * ("d" in sides)
        if left < right:
            level.setdefault(y, []).append((left, right))
        if top < bottom:
            upright.setdefault(x, []).append((top, bottom))
    found = [((first, y), (last, y)) for y, runs in sorted(level.items()) for first, last in _joined(runs)]
    return found + [((x, first), (x, last)) for x, runs in sorted(upright.items()) for first, last in _joined(runs)]


def _joined(runs: list[Point]) -> list[Point]:
    joined: list[Point] = []
    for first, last in sorted(runs):
        if joined and joined[-1][1] >= first:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _heads(lines: list[str]) -> Iterator[str]:
    for character, x, y in _cells(lines):
        if character in "◄►":
            tip = x - CELL_WIDTH // 2 if character == "◄" else x + CELL_WIDTH // 2
            back = 2 * x - tip
            yield f"M{tip} {y}L{back} {y - 5}L{back} {y + 5}Z"


def _texts(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield each run of words with its beginning and its base line."""
    for row, line in enumerate(lines):
        rest = "".join(" " if character in SIDES else character for character in line)
        for found in re.finditer(r"\S+(?: \S+)*", rest):
            yield found[0], MARGIN + CELL_WIDTH * found.start(), _middle(row) + 4


if __name__ == "__main__":
    (HERE / "picture.svg").write_text(drawn((HERE / "picture.txt").read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write("made docs/picture.svg\n")
