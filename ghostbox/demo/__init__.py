# SPDX-License-Identifier: MIT
"""``ghostbox demo``: the whole product on one machine, and a proof from inside the guest that it works."""

from ghostbox.demo.run import VM_NAME, DemoResult, Traffic, problems, run, tear_down

__all__ = ["VM_NAME", "DemoResult", "Traffic", "problems", "run", "tear_down"]
