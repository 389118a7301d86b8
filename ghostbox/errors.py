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
    ├── ImageError                exit 1
    ├── GuestError                exit 1    the guest did not boot, or SSH or cloud-init failed
    ├── DeadlineExceeded          exit 124
    └── Interrupted               exit 130

A message says what failed, on what, and why; ``why`` holds the cause where it needs a line of its own; ``hint`` says
what to do, if possible as a command to paste. Foreign errors are wrapped once, where they enter, with ``from err``;
all are caught once, in ``ghostbox.cli``.
"""

from __future__ import annotations


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
