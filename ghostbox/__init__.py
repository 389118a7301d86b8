# SPDX-License-Identifier: MIT
"""Give one Linux VM the RAM of all your machines."""

__version__ = "0.1.0"
