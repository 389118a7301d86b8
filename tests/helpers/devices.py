# SPDX-License-Identifier: MIT
"""Skip tests whose devices this machine lacks."""

from __future__ import annotations

import os

import pytest


def need_device(path: str) -> None:
    """Skip the test if a device cannot be opened."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as err:
        pytest.skip(f"cannot run here: {path}: {err.strerror}")
