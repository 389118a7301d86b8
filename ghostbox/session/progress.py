# SPDX-License-Identifier: MIT
"""How a session tells what it is doing; the CLI shows it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Stage(Protocol):
    """A stage at work."""

    def say(self, text: str) -> None:
        """Show what the stage is doing now; the last word stays as its detail."""


class Progress(Protocol):
    """A sink for named stages; ``seconds`` is how long each took."""

    seconds: dict[str, float]

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """Run a stage."""

    def note(self, text: str) -> None:
        """Show a line between stages."""
