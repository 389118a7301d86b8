# SPDX-License-Identifier: MIT
"""Describe how a session reports what it is doing; the CLI shows it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Stage(Protocol):
    """Describes a stage that is running."""

    def say(self, text: str) -> None:
        """Show what the stage is doing now; the last text stays as the stage's detail."""


class Progress(Protocol):
    """Receives named stages; ``seconds`` has how long each took."""

    seconds: dict[str, float]

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """Run a block as a stage."""

    def note(self, text: str) -> None:
        """Show a line between two stages."""
