# SPDX-License-Identifier: MIT
"""Show the whole product on one machine, and prove from inside the guest that it works (``ghostbox demo``)."""

from ghostbox.demo.run import VM_NAME, DemoResult, Traffic, problems, run, tear_down

__all__ = ["VM_NAME", "DemoResult", "Traffic", "problems", "run", "tear_down"]
