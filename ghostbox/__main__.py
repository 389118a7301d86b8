# SPDX-License-Identifier: MIT
"""``python -m ghostbox`` is the command ``ghostbox``."""

from ghostbox.cli.main import main

main()
