# SPDX-License-Identifier: MIT
"""Parse the command line, call the layers below, print the results. This package has no logic of its own."""
