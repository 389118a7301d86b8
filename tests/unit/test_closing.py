# SPDX-License-Identifier: MIT
"""A resource is closed when its block ends."""

from __future__ import annotations

import pytest

from ghostbox.system.closing import Closing


class Door(Closing):
    n_closed = 0

    def close(self) -> None:
        self.n_closed += 1


def test_block_gets_the_thing_itself_which_is_closed_at_its_end() -> None:
    door = Door()
    with door as inside:
        assert (inside is door, door.n_closed) == (True, 0)
    assert door.n_closed == 1


def test_error_closes_it_and_goes_on() -> None:
    door = Door()
    with pytest.raises(ValueError, match="inside"), door:
        raise ValueError("inside")
    assert door.n_closed == 1
