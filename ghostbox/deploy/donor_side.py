# SPDX-License-Identifier: MIT
"""Do the donor's part of deploying from the host: run `agent`, and the commands of the GhostBox that it installs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from ghostbox.deploy import agent as agent_module
from ghostbox.deploy import facts as facts_module
from ghostbox.deploy.facts import Facts, Place, Sudo
from ghostbox.deploy.plan import Start, link_of, runtime_of
from ghostbox.errors import GhostboxError, Refused
from ghostbox.memserver.deployed import Shown
from ghostbox.system import forms
from ghostbox.system.processes import Ended
from ghostbox.system.remote import Remote

_FACTS_S = 120.0
_STEP_S = 600.0
_READ = "import sys; exec(sys.stdin.buffer.read({length}))"

_SHOWN = TypeAdapter(Shown)

T = TypeVar("T")
Ask = Callable[[str], str]
"""Asks the user for a password, with a question, and returns it."""


def look(remote: Remote) -> Facts:
    """Return the facts of the machine.

    Raises:
        GhostboxError: it does not say them.
    """
    done = remote.run(["sh", "-s"], [facts_module.script()], doing="nothing was changed there", timeout_s=_FACTS_S)
    return facts_module.read(done.stdout, remote.target)


@dataclass(frozen=True)
class DonorSide:
    """Is a machine, with the place of the installation there and the rights to change it."""

    remote: Remote
    facts: Facts
    place: Place
    prefix: tuple[str, ...]
    password: bytes

    def act(self, action: str, doing: str, parts: Iterable[bytes] = (), **more: object) -> dict[str, Any]:
        """Have the agent do a step.

        Raises:
            GhostboxError: the step failed there, or the connection was lost.
        """
        code = Path(agent_module.__file__).read_bytes()
        places = {"runtime": runtime_of(self.place, self.facts), "link": link_of(self.place, self.facts)}
        request = json.dumps({"action": action, "prefix": self.place.path, **places, **more})
        argv = [self.facts.python_path, "-I", "-c", _READ.format(length=len(code)), request]
        done = self._run(argv, _joined([code], parts), doing)
        try:
            answer = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError) as err:
            said = "\n".join(done.stderr.strip().splitlines()[-4:])
            raise GhostboxError(f"{self.remote.target}: {doing}", why=said or f"status {done.status}") from err
        if "failed" in answer:
            raise GhostboxError(f"{self.remote.target}: {answer['failed']}", why=answer["why"] or None)
        return dict(answer["done"])

    def command(self, form: TypeAdapter[T], *words: str, doing: str, behind: Iterable[str] = ()) -> T:
        """Run a command of the installed GhostBox with ``--json``, and return what it prints.

        Args:
            form: of what it prints.
            words: the command with its options.
            doing: what it does, for errors.
            behind: words behind ``--``.

        Raises:
            GhostboxError: the command failed, or the connection was lost.
        """
        rest = list(behind)
        argv = [f"{self.place.path}/bin/ghostbox", *words, "--json", *(["--", *rest] if rest else [])]
        done = self._run(argv, (), doing)
        if done.status == 0:
            try:
                return forms.read(form, json.loads(done.stdout or "null"))
            except ValueError as err:
                raise GhostboxError(
                    f"{self.remote.target}: {doing}", why=f"its answer has another form: {err}"
                ) from err
        raise self._error(done, doing)

    def start(self, name: str, options: Iterable[str], by: Start) -> Shown:
        """Start the memserver there, and return how it does."""
        words = ("deployed", "start", "--name", name, "--by", self._scope_word(by))
        return self.command(_SHOWN, *words, doing="the memserver was not started", behind=options)

    def stop(self, name: str, by: Start) -> Shown:
        """Stop the memserver there, and return how it did before."""
        words = ("deployed", "stop", "--name", name, "--by", self._scope_word(by))
        return self.command(_SHOWN, *words, doing="the memserver was not stopped")

    def _scope_word(self, start: Start) -> str:
        """Return how the memserver is started there, as `deployed start` takes it."""
        if start is Start.BACKGROUND:
            return "background"
        return "user" if self.place.path == self.facts.home_place.path else "system"

    def _error(self, done: Ended, doing: str) -> GhostboxError:
        for line in reversed(done.stderr.splitlines()):
            try:
                said = json.loads(line)["error"]
                kind = Refused if said["exit_code"] == Refused.exit_code else GhostboxError
                return kind(f"{self.remote.target}: {said['message']}", why=said["why"], hint=said["hint"])
            except (ValueError, KeyError, TypeError):
                continue
        said = "\n".join(done.stderr.strip().splitlines()[-4:])
        return GhostboxError(f"{self.remote.target}: {doing}", why=said or f"status {done.status}")

    def _run(self, argv: list[str], parts: Iterable[bytes], doing: str) -> Ended:
        return self.remote.run(
            [*self.prefix, *argv],
            _joined([self.password] if self.password else [], parts),
            doing=doing,
            timeout_s=_STEP_S,
        )


def _joined(first: Iterable[bytes], rest: Iterable[bytes]) -> Iterable[bytes]:
    yield from first
    yield from rest


def with_rights(remote: Remote, facts: Facts, place: Place, *, as_root: bool, ask: Ask | None) -> DonorSide:
    """Return the machine with the rights that the place takes. If sudo wants a password, the user is asked once.

    sudo forgets at the end of each command what it was told (``-k``), so each gets the password first on its stdin: it
    is in no argument and in no file.

    Raises:
        Refused: sudo does not let the login become root.
    """
    if not as_root:
        return DonorSide(remote, facts, place, (), b"")
    if facts.sudo is Sudo.FREE:
        return DonorSide(remote, facts, place, ("sudo", "-n", "--"), b"")
    assert ask is not None
    password = ask(f"sudo's password of {facts.user} on {remote.target}").encode() + b"\n"
    prefix = ("sudo", "-k", "-S", "-p", "", "--")
    done = remote.run([*prefix, "true"], [password], doing="nothing was changed there", timeout_s=_FACTS_S)
    if done.status != 0:
        raise Refused(
            f"sudo does not let {facts.user} be root on {remote.target}",
            why=done.stderr.strip() or None,
            hint=f"log in as root; or add --user, which installs into {facts.home_place.path} of {facts.user}",
        )
    return DonorSide(remote, facts, place, prefix, password)
