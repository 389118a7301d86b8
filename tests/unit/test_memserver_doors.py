# SPDX-License-Identifier: MIT
"""The owner's socket answers its own user and root, whatever the modes of file and directory are."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from ghostbox.errors import DonorError
from ghostbox.memserver.doors import owners_door
from ghostbox.memserver.owner import Owner
from helpers.other_user import NOBODY, as_user


def asked(place: Path, ask: Callable[[Owner], str]) -> str:
    """Return what comes of asking at a door that every user may open."""
    path = place / "owner.sock"
    place.chmod(0o755)

    async def serve() -> str:
        async with owners_door(JSONResponse([]), path):
            path.chmod(0o666)
            place.chmod(0o755)
            return await asyncio.to_thread(ask, Owner(path, "nowhere"))

    return asyncio.run(serve())


def count(door: Owner) -> str:
    return f"{len(door.tokens())} tokens"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gb-") as made:
        yield Path(made)


def test_its_own_user_is_answered(place: Path) -> None:
    assert asked(place, count) == "0 tokens"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_with_what_to_do(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refused(door: Owner) -> str:
        try:
            return count(door)
        except DonorError as err:
            return f"{err.message}; {err.hint}"

    said = asked(place, lambda door: as_user(lambda: refused(door)))
    assert said == (
        "the owner's socket of this memserver answers its own user and root alone;"
        " run the command as the user that the memserver runs as, or as root (sudo)"
    )
    assert f"a process of user {NOBODY} was refused at the owner's socket" in caplog.text
