# SPDX-License-Identifier: MIT
"""What a test needs of the machine, and skips itself without."""

from __future__ import annotations

import os

import pytest


def need_device(path: str) -> None:
    """Skip where a device cannot be opened."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as err:
        pytest.skip(f"cannot run here: {path}: {err.strerror}")
