# SPDX-License-Identifier: MIT
"""Work out, from facts alone, what will be done and how it will perform: no I/O, no processes."""
