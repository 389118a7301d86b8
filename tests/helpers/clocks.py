# SPDX-License-Identifier: MIT
"""Be the clock of a donor's file of clients, for tests that let time pass."""

from __future__ import annotations

from ghostbox.memserver.clients import Clock


class SetClock(Clock):
    """Is a clock that the test sets."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.booted = 1000.0
        self.boots = 1

    def wall_s(self) -> float:
        return self.wall

    def since_boot_s(self) -> float:
        return self.booted

    def boot(self) -> str:
        return f"boot-{self.boots}"

    def pass_s(self, seconds: float) -> None:
        self.wall += seconds
        self.booted += seconds

    def reboot(self) -> None:
        self.boots += 1
        self.booted = 0.0
