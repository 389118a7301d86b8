# SPDX-License-Identifier: MIT
"""Receive stages without showing anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Quiet:
    """Is a `Progress` that keeps its notes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Quiet]:
        """Run a stage."""
        self.seconds[name] = 0.0
        yield self

    def say(self, text: str) -> None:
        """Ignore what a stage reports."""

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)
