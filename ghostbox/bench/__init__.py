# SPDX-License-Identifier: MIT
"""Measure every figure beside its reference, in the same run, in turns (``ghostbox bench``).

`model` defines rows and computes ratios, `lab` runs the processes that are measured, `wire` makes a network of a given
rate. `faults`, `pressure`, `narrow`, `servers` and `sizes` define what is measured, `vm` (with `vm_…`) what is measured
in guests. `run` goes through the rounds, `plot` draws.
"""

from ghostbox.bench.model import Report
from ghostbox.bench.run import Options, run, scenario_names

__all__ = ["Options", "Report", "run", "scenario_names"]
