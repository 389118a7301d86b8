# SPDX-License-Identifier: MIT
"""Hold the user's consent to use donors without encryption (`pool.insecure`), for this process.

The command line gives the rule before a command runs; `donors.trust` asks. Loopback and paired donors need no consent.
"""

from __future__ import annotations

from collections.abc import Callable

Rule = Callable[[str], bool]
_rules: list[Rule] = []


def by(rule: Rule) -> None:
    """Add a rule: a function that tells whether the user agrees for a donor, given ``host:port`` in lower case."""
    _rules.append(rule)


def give() -> None:
    """Agree for all donors, until the process ends."""
    by(lambda _address: True)


def given(address: str) -> bool:
    """Tell whether the user agrees that the donor at ``address`` is used without encryption."""
    return any(rule(address) for rule in _rules)


def withdraw() -> None:
    """Forget all rules."""
    _rules.clear()
