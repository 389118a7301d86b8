# SPDX-License-Identifier: MIT
"""Set up logging for the commands: log records go to stderr, only results to stdout."""

from __future__ import annotations

import logging

from rich.logging import RichHandler

from ghostbox.terminal import PlainConsole, printable


class _Printable(logging.Formatter):
    """Shows control characters in readable form, before the handler measures the text's width."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up(verbosity: int, *, color: bool | None = None) -> None:
    """Send log records to stderr.

    Args:
        verbosity: -1 for errors only, 0 for warnings, 1 for info, 2 and above for debug (with tracebacks).
        color: None decides by the terminal.
    """
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    console = PlainConsole(stderr=True, no_color=color is False, force_terminal=color)
    handler = RichHandler(
        console=console, show_path=False, show_time=verbosity > 1, rich_tracebacks=verbosity > 1, markup=False
    )
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("paramiko", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING if verbosity < 3 else logging.DEBUG))
    # zeroconf warns of what is usual: an interface that went, a packet that nobody can read.
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL if verbosity < 3 else logging.DEBUG)
