# SPDX-License-Identifier: MIT
"""Define every error that a user can meet.

    GhostboxError                 exit 1
    ├── UsageError                exit 2    the command line or the configuration is wrong
    │   └── ConfigError
    ├── NotRunning                exit 3
    ├── NotFound                  exit 4    no such VM, image, lease, donor
    ├── Refused                   exit 5    a check before the start failed; nothing was changed
    │   └── DonorTooSmall
    ├── PoolDegraded              exit 6
    ├── DonorError                exit 1    a donor's control API failed or refused
    │   ├── LeaseExists
    │   ├── TokenRefused
    │   ├── PairingRefused
    │   └── NoAnswer                       no donor, or not the one that is meant
    │       └── Untrusted                  host and donor are not paired, or not any more
    ├── ProgramError              exit 1    a C program of GhostBox or a system tool failed
    ├── HypervisorError           exit 1    libvirt failed or refused
    │   └── LibvirtDenied
    ├── ImageError                exit 1
    ├── GuestError                exit 1    the guest did not boot, or SSH or cloud-init failed
    ├── ResourceExhausted         exit 1    no space, no file descriptor, no memory left on this machine
    ├── DeadlineExceeded          exit 124
    └── Interrupted               exit 130

A message says what failed, on what, and why; ``why`` holds the cause where it needs a line of its own; ``hint`` says
what to do, if possible as a command to paste. Foreign errors are wrapped once, where they enter, with ``from err``; all
are caught once, in ``ghostbox.cli``.
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
    6: "the VM runs, but a donor, its memory or a disk has a problem",
    124: "the time limit passed",
    130: "interrupted",
}
"""The meaning of each exit code. `shell` with a command returns that command's exit code instead."""


class GhostboxError(Exception):
    """Is the base of all errors; ``exit_code`` is what the command returns."""

    exit_code = 1

    def __init__(self, message: str, *, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint


class UsageError(GhostboxError):
    """Is raised if the command line is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """Is raised if the configuration is wrong: an unknown key, a wrong type, a value out of range."""


class NotRunning(GhostboxError):
    """Is raised if a VM exists and does not run."""

    exit_code = 3


class NotFound(GhostboxError):
    """Is raised if no VM, image, lease or donor has the name."""

    exit_code = 4


class Refused(GhostboxError):
    """Is raised if a check before the start fails; nothing was changed."""

    exit_code = 5


class DonorTooSmall(Refused):
    """Is raised if the donors together offer less than the VM needs."""


class PoolDegraded(GhostboxError):
    """Is raised if a donor does not answer, or a VM's memory or disk has a problem."""

    exit_code = 6


class DonorError(GhostboxError):
    """Is raised if a donor cannot be reached, is no donor, or refuses."""


class LeaseExists(DonorError):
    """Is raised if the donor already has a lease of that name."""


class TokenRefused(DonorError):
    """Is raised if a donor does not take a pairing token: it is unknown there, was used, or is too old."""


class PairingRefused(DonorError):
    """Is raised if a donor does not go on with a request to be paired: it is denied, has expired, is unknown there."""


class NoAnswer(DonorError):
    """Is raised if no donor answers at an address; whether a request was heard is unknown."""


class Untrusted(NoAnswer):
    """Is raised if host and donor do not trust each other: not paired, another key, no encryption, revoked.

    ``code`` is the donor's word for it, if the donor itself refuses.
    """

    code: str | None = None


class ProgramError(GhostboxError):
    """Is raised if a program that GhostBox starts (its own or the system's) fails."""


class HypervisorError(GhostboxError):
    """Is raised if libvirt fails or refuses."""


class LibvirtDenied(HypervisorError):
    """Is raised if libvirt runs, but does not let this user connect."""


class ImageError(GhostboxError):
    """Is raised if a guest image cannot be built, imported or used."""


class GuestError(GhostboxError):
    """Is raised if the guest does not boot, or SSH or cloud-init in it fails."""


class QemuCrashed(GuestError):
    """Is raised if QEMU crashed while the guest booted."""


class DeadlineExceeded(GhostboxError):
    """Is raised if an operation takes longer than its limit."""

    exit_code = 124


class Interrupted(GhostboxError):
    """Is raised if the user pressed Ctrl-C."""

    exit_code = 130


class ResourceExhausted(GhostboxError):
    """Is raised if this machine has no space, no file descriptor or no memory left."""


_FULL = "make space there: df -h and df -i show which file system is full, ghostbox paths shows GhostBox's directories"
_EXHAUSTED = {
    errno.ENOSPC: ("no space is left on the device", _FULL),
    errno.EDQUOT: ("the disk quota is used up", _FULL),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 4096, or LimitNOFILE= of the service"),
    errno.ENFILE: ("too many files are open on this machine", "raise fs.file-max, or end programs that hold many"),
    errno.ENOMEM: ("out of memory", "end something that uses memory, or raise the limit of the control group"),
}


def exhausted(err: OSError) -> ResourceExhausted | None:
    """Return the error for a resource that this machine has run out of; None if ``err`` is another error."""
    if err.errno not in _EXHAUSTED:
        return None
    what, hint = _EXHAUSTED[err.errno]
    where = f"{err.filename}: " if err.filename else ""
    return ResourceExhausted(f"{where}{what}", hint=hint)


def hint_for(err: OSError, otherwise: str | None = None) -> str | None:
    """Return advice for ``err``: how to free a resource that has run out, or ``otherwise``."""
    found = exhausted(err)
    return found.hint if found is not None and found.hint is not None else otherwise
