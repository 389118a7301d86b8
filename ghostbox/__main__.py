# SPDX-License-Identifier: MIT
"""Run the command ``ghostbox`` as ``python -m ghostbox``."""

from ghostbox.cli.main import main

main()
