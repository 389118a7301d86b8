# SPDX-License-Identifier: MIT
"""``ghostbox demo``: the whole product on one machine, and a proof from inside the guest that it works."""

from ghostbox.demo.run import DemoResult, Traffic, run, tear_down

__all__ = ["DemoResult", "Traffic", "run", "tear_down"]
