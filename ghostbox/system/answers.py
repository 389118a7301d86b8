# SPDX-License-Identifier: MIT
"""Read the answers of the C programs on their control sockets into models.

A program outlives the command that started it, so it may be older or newer than the command that asks. A model ignores
unknown fields, and has defaults for fields that an older program does not send.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from ghostbox import __version__
from ghostbox.system import forms, processes
from ghostbox.system.processes import ControlError

M = TypeVar("M", bound=BaseModel)

MISFIT = "misfit"
"""The error code for an answer that does not fit its model."""


@dataclass(frozen=True)
class Program:
    """Is a C program that answers; ``mend`` is the advice for a program of another version with unknown answers."""

    name: str
    mend: str

    def ask(self, form: type[M], control: Path, cmd: str, *, timeout_s: float = 10.0, **args: Any) -> M:
        """Send one command to the control socket and return the answer as the model ``form``.

        Raises:
            ControlError: see `processes.control_request` and `understood`.
        """
        answer = processes.control_request(control, cmd, timeout_s=timeout_s, **args)
        return self.understood(form, answer, control, cmd)

    def understood(self, form: type[M], answer: object, control: Path, cmd: str) -> M:
        """Return the answer to ``cmd`` from ``control`` as the model ``form``.

        Raises:
            ControlError: the answer has another form (``misfit``); the message names the program and its version.
        """
        try:
            return forms.read(TypeAdapter(form), answer)
        except ValueError as err:
            raise ControlError(
                f"{self.name} {_version(answer, control)} answers '{cmd}' in a form that GhostBox {__version__} does"
                f" not know: {err}",
                code=MISFIT,
                why=f"the program listens on {control}, and is of another version",
                hint=self.mend,
            ) from err


def _version(answer: object, control: Path) -> str:
    """Return the version of the program that sent an answer: only its status has the version."""
    said = answer
    if not isinstance(said, dict) or "version" not in said:
        try:
            said = processes.control_request(control, "status")
        except ControlError:
            said = None
    version = said.get("version") if isinstance(said, dict) else None
    return version if isinstance(version, str) else "of an unknown version"
