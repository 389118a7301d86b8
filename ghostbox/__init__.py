# SPDX-License-Identifier: MIT
"""GhostBox: one Linux VM with the RAM of all your machines."""

__version__ = "0.1.0"
