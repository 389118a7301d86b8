# SPDX-License-Identifier: MIT
"""What all pager tests need of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.devices import need_device
from helpers.fake_pager import FakePager, fake_pager
from helpers.pager import short_dir


@pytest.fixture(autouse=True)
def userfaultfd_device() -> None:
    """Skip where no userfaultfd can be made."""
    need_device("/dev/userfaultfd")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    with short_dir() as path:
        yield path


@pytest.fixture
def fake(place: Path) -> Iterator[FakePager]:
    """A pager that does what the test says."""
    with fake_pager(place / "p") as pager:
        yield pager
