# SPDX-License-Identifier: MIT
"""Every error a user can meet.

    GhostboxError                 exit 1
    ├── UsageError                exit 2    the command line or the configuration is wrong
    │   └── ConfigError
    ├── NotRunning                exit 3
    ├── NotFound                  exit 4    no such VM, image, lease, donor
    ├── Refused                   exit 5    preflight or plan says no; nothing was changed
    │   └── DonorTooSmall
    ├── PoolDegraded              exit 6
    ├── DonorError                exit 1    a donor's control API failed or refused
    │   └── LeaseExists
    ├── ProgramError              exit 1    one of our C programs or a system tool failed
    ├── HypervisorError           exit 1    libvirt said no
    │   └── LibvirtDenied
    ├── ImageError                exit 1
    ├── GuestError                exit 1    the guest did not boot, or SSH or cloud-init failed
    ├── ResourceExhausted         exit 1    no space, no file descriptor, no memory left on this machine
    ├── DeadlineExceeded          exit 124
    └── Interrupted               exit 130

A message says what failed, on what, and why; ``why`` holds the cause where it needs a line of its own; ``hint`` says
what to do, if possible as a command to paste. Foreign errors are wrapped once, where they enter, with ``from err``;
all are caught once, in ``ghostbox.cli``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "failed",
    2: "the command line or the configuration is wrong",
    3: "the VM does not run",
    4: "there is no such VM, image, lease, donor or file",
    5: "refused: nothing was changed",
    6: "it runs, but a donor, its memory or its disk is not well",
    124: "it took too long",
    130: "interrupted",
}
"""What a command's exit code means. `shell` with a command returns that command's own."""


class GhostboxError(Exception):
    """Base of all errors; ``exit_code`` is what the command returns."""

    exit_code = 1

    def __init__(self, message: str, *, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint


class UsageError(GhostboxError):
    """The command line is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is wrong: unknown key, wrong type, value out of range."""


class NotRunning(GhostboxError):
    """The VM exists and does not run."""

    exit_code = 3


class NotFound(GhostboxError):
    """No VM, image, lease or donor of that name."""

    exit_code = 4


class Refused(GhostboxError):
    """A check before the start says no; nothing was changed."""

    exit_code = 5


class DonorTooSmall(Refused):
    """The donors together offer less than the VM needs."""


class PoolDegraded(GhostboxError):
    """The VM runs, but a donor is missing or slow."""

    exit_code = 6


class DonorError(GhostboxError):
    """A donor cannot be reached, is no donor, or refused."""


class LeaseExists(DonorError):
    """The donor already has a lease of that name."""


class ProgramError(GhostboxError):
    """A program that we start (our own or the system's) failed."""


class HypervisorError(GhostboxError):
    """libvirt failed or refused."""


class LibvirtDenied(HypervisorError):
    """libvirt is there, and does not let this user in."""


class ImageError(GhostboxError):
    """A guest image cannot be built, imported or used."""


class GuestError(GhostboxError):
    """The guest did not come up, or SSH or cloud-init in it failed."""


class DeadlineExceeded(GhostboxError):
    """Something took longer than its limit."""

    exit_code = 124


class Interrupted(GhostboxError):
    """The user pressed Ctrl-C."""

    exit_code = 130


class ResourceExhausted(GhostboxError):
    """This machine has no space, no file descriptor or no memory left."""


_FULL = "make room there: df -h and df -i say which file system is full, ghostbox paths what lies where"
_EXHAUSTED = {
    errno.ENOSPC: ("no space is left on the device", _FULL),
    errno.EDQUOT: ("the disk quota is used up", _FULL),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 4096, or LimitNOFILE= of the service"),
    errno.ENFILE: ("too many files are open on this machine", "raise fs.file-max, or end what holds so many"),
    errno.ENOMEM: ("out of memory", "end something that uses memory, or raise the limit of the control group"),
}


def exhausted(err: OSError) -> ResourceExhausted | None:
    """Return the error for something that this machine has run out of; None if ``err`` is anything else."""
    if err.errno not in _EXHAUSTED:
        return None
    what, hint = _EXHAUSTED[err.errno]
    where = f"{err.filename}: " if err.filename else ""
    return ResourceExhausted(f"{where}{what}", hint=hint)


def hint_for(err: OSError, otherwise: str) -> str:
    """Return what to do about ``err``: what mends a resource that has run out, or ``otherwise``."""
    found = exhausted(err)
    return found.hint if found is not None and found.hint is not None else otherwise
