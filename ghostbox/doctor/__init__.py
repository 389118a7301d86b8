# SPDX-License-Identifier: MIT
"""Check this machine: what was found, why it matters, the command that mends it. This changes nothing."""

from ghostbox.doctor.checks import CHECKS, Role, run
from ghostbox.doctor.model import Check, Machine, Result

__all__ = ["CHECKS", "Check", "Machine", "Result", "Role", "run"]
