# SPDX-License-Identifier: MIT
"""``ghostbox bench``: every figure beside its reference, taken in the same run, in turns.

`model` says what a row is and computes ratios, `lab` runs the processes that are measured, `wire` makes a network of a
given rate, `faults`, `pressure`, `narrow`, `servers` and `sizes` say what is measured, `vm` (with `vm_…`) what in
guests, `run` goes through the rounds, `plot` draws.
"""

from ghostbox.bench.model import Report
from ghostbox.bench.run import Options, run, scenario_names

__all__ = ["Options", "Report", "run", "scenario_names"]
