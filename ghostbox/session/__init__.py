# SPDX-License-Identifier: MIT
"""Make, run, show and remove one VM: up, down, delete, status. `record` has the states of a VM."""

from ghostbox.session.access import console, shell, wait_ready, wait_stopped
from ghostbox.session.definition import defined
from ghostbox.session.down import delete, down, forget
from ghostbox.session.planning import make_plan
from ghostbox.session.record import Book, Record, VmState, names
from ghostbox.session.takeover import Recovered, recover
from ghostbox.session.up import UpResult, up
from ghostbox.session.view import VmInfo, VmStatus, VmSummary, info, status, summaries

__all__ = [
    "Book",
    "Record",
    "Recovered",
    "UpResult",
    "VmInfo",
    "VmState",
    "VmStatus",
    "VmSummary",
    "console",
    "defined",
    "delete",
    "down",
    "forget",
    "info",
    "make_plan",
    "names",
    "recover",
    "shell",
    "status",
    "summaries",
    "up",
    "wait_ready",
    "wait_stopped",
]
