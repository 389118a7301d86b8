# SPDX-License-Identifier: MIT
"""Name the values of ``guest.tiering``: the configuration offers them, and `plan.tiering` chooses by them."""

from __future__ import annotations

import enum


class How(enum.StrEnum):
    """Names what moves pages in the guest."""

    DAMON = "damon"
    NUMA = "numa"
    OFF = "off"


CHOICES = ("auto", *(how.value for how in How))
