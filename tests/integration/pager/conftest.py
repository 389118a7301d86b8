# SPDX-License-Identifier: MIT
"""Fixtures and requirements that all tests of the pager share."""

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
    """Yield a directory whose path is short enough for Unix sockets."""
    with short_dir() as path:
        yield path


@pytest.fixture
def fake(place: Path) -> Iterator[FakePager]:
    """Yield a pager that does what the test asks."""
    with fake_pager(place / "p") as pager:
        yield pager
