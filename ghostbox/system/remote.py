# SPDX-License-Identifier: MIT
"""Run commands on another machine by the user's own ssh: its configuration, agent, jump hosts and known hosts.

One connection is made and shared by all commands (ControlMaster, ssh_config(5)). What ssh has to ask (a new host key, a
passphrase) it asks the user itself, on the terminal; without one it asks nothing (BatchMode). No host key is accepted
here, and no password for ssh is seen here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ghostbox.errors import GhostboxError, ProgramError, Refused, UsageError
from ghostbox.system import processes
from ghostbox.system.closing import Closing
from ghostbox.system.processes import Ended

_LOST = 255  # the exit status of ssh itself, ssh(1)
_KEPT_S = 120  # how long the shared connection outlives a host's command that was killed
_PATIENCE = ("ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4")
_WHY_LINES = 4
_TARGET = re.compile(r"[^-\s][^\s]*")


class Remote(Closing):
    """Is a machine that ssh reaches as ``target`` (``[USER@]HOST``), connected until `close`."""

    def __init__(self, target: str, *, config: Path | None = None, has_terminal: bool = False) -> None:
        """Connect.

        Args:
            target: as ssh takes it.
            config: a file that ssh reads instead of the user's own configuration.
            has_terminal: ssh may ask the user.

        Raises:
            UsageError: the target is not one.
            Refused: the machine shows another host key than is known, or an unknown one.
            ProgramError: ssh is not installed, or cannot log in.
        """
        if not _TARGET.fullmatch(target):
            raise UsageError(f"'{target}' is not [USER@]HOST", hint="give it as ssh takes it: root@tower")
        self.target = target
        self._directory = Path(tempfile.mkdtemp(prefix="ghostbox-ssh-"))
        own = [f"ControlPath={self._directory}/c", *_PATIENCE, *([] if has_terminal else ["BatchMode=yes"])]
        self._argv = ["ssh", *(["-F", str(config)] if config else []), *(f"-o{each}" for each in own)]
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        log = self._directory / "log"
        more = ["-oControlMaster=yes", f"-oControlPersist={_KEPT_S}", "-E", str(log), "-fN", "--", self.target]
        done = processes.feed([*self._argv, *more])
        if done.status != 0:
            said = log.read_text(errors="replace") if log.exists() else ""
            raise failure(self.target, f"{said}\n{done.stderr}")

    def close(self) -> None:
        """End the connection."""
        if (self._directory / "c").exists():
            processes.feed([*self._argv, "-Oexit", "--", self.target])
        shutil.rmtree(self._directory, ignore_errors=True)

    def run(
        self, argv: Sequence[str], parts: Iterable[bytes] = (), *, doing: str, timeout_s: float | None = None
    ) -> Ended:
        """Run a command there, with ``parts`` on its stdin; its exit status is no error.

        Args:
            argv: the command's words.
            parts: what it reads.
            doing: what is lost with the connection, for its error.
            timeout_s: the longest time, after the last part.

        Raises:
            ProgramError: the connection was lost.
            DeadlineExceeded: the command took longer than ``timeout_s``.
        """
        # If the shared connection is gone, ssh would make one of its own: it must not.
        own = ["-oControlMaster=no", "-oProxyCommand=false", "-T", "--", self.target]
        done = processes.feed([*self._argv, *own, shlex.join(argv)], parts, timeout_s=timeout_s)
        if done.status == _LOST:
            raise ProgramError(
                f"the connection to {self.target} was lost: {doing}",
                why=_last_lines(done.stderr),
                hint="the same command again begins anew, and removes what is half done",
            )
        return done


def failure(target: str, said: str) -> GhostboxError:
    """Return the error for a login that failed, by what ssh has said."""
    why = _last_lines(said)
    host = target.rpartition("@")[2]
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        return Refused(
            f"{target} shows another SSH host key than the one that is known",
            why="another machine may answer in its place, or it was installed anew",
            hint=f"if you know that it was installed anew: ssh-keygen -R {host}; then log in once: ssh {target}",
        )
    if "Host key verification failed" in said:
        return Refused(
            f"the SSH host key of {target} is not known here",
            why=why,
            hint=f"log in once, and compare the key that ssh shows with the machine's own: ssh {target}",
        )
    if "Permission denied" in said:
        return ProgramError(
            f"{target} does not let ssh log in", why=why, hint=f"see that this works: ssh {target} true"
        )
    return ProgramError(f"ssh cannot reach {target}", why=why, hint=f"see that this works: ssh {target} true")


def _last_lines(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip(" @\t\r")]
    return "\n".join(lines[-_WHY_LINES:]) or None
