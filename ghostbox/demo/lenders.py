# SPDX-License-Identifier: MIT
"""Run the demo's two donors: memservers on this machine's loopback, as processes that outlive the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ghostbox.donors import pairings, token
from ghostbox.donors.address import parse_address
from ghostbox.errors import ProgramError
from ghostbox.memserver.clients import USER
from ghostbox.memserver.lock import owner_socket
from ghostbox.memserver.owner import Owner
from ghostbox.paths import Paths, make_directory
from ghostbox.session import pairing
from ghostbox.system import documents, processes, state_files
from ghostbox.units import format_bytes

_READY_TIMEOUT_S = 30.0
_SHUT_DOWN_TIMEOUT_S = 15.0
_TOKEN_S = 60.0


@dataclass(frozen=True)
class Lender:
    """Describes a memserver that the demo started. ``secure``: it serves paired hosts alone, over TLS."""

    name: str
    pid: int
    address: str
    secure: bool = False


@dataclass(frozen=True)
class Place:
    """Says where memservers run: the words before their command (nsenter(1)), and the address that they listen on.

    An address that is not loopback must be in a private network, unless they are ``secure``: such memservers lend to
    every client that reaches them.
    """

    prefix: tuple[str, ...] = ()
    bind: str | None = None
    secure: bool = False


LOOPBACK = Place()
SECURE = Place(secure=True)


def start(names: tuple[str, ...], size_bytes: int, paths: Paths, place: Place = LOOPBACK) -> list[Lender]:
    """Return a memserver for each name, started unless it runs from an earlier demo.

    This host is paired with those that are secure.

    Raises:
        ProgramError: a memserver does not start; those that this call started are ended.
        GhostboxError: a memserver cannot be paired.
    """
    known = {lender.name: lender for lender in running(paths)}
    lenders: list[Lender] = []
    try:
        for name in names:
            lenders.append(known.get(name) or _start_one(name, size_bytes, paths, place))
            _write_record({**known, **{lender.name: lender for lender in lenders}}.values(), paths)
            _pair(lenders[-1], paths)
    except BaseException:
        stop([lender for lender in lenders if lender.name not in known], paths)
        raise
    return lenders


def running(paths: Paths) -> list[Lender]:
    """Return the demo's memservers that run."""
    found: dict[str, Lender] = {}
    for file in (_record_file(paths), paths.runtime / "demo.json"):  # the second: versions before 2026-11-29
        try:
            lenders = [Lender(**documents.known(entry, Lender)) for entry in json.loads(file.read_text())]
        except (OSError, ValueError, TypeError, AttributeError):
            continue
        for lender in lenders:
            if _is_ours(lender):
                found.setdefault(lender.name, lender)
    return list(found.values())


def stop(lenders: list[Lender], paths: Paths) -> None:
    """End memservers, remove their state, and forget that this host is paired with them.

    Their leases must have been released before.
    """
    for lender in lenders:
        pairings.drop(paths, pairings.meant(paths, lender.address))
        processes.terminate(lender.pid, check=partial(_is_ours, lender), timeout_s=_SHUT_DOWN_TIMEOUT_S)
        shutil.rmtree(paths.memserver_state(lender.name), ignore_errors=True)
        shutil.rmtree(paths.memserver_runtime(lender.name), ignore_errors=True)
    _write_record([lender for lender in running(paths) if lender not in lenders], paths)


def _pair(lender: Lender, paths: Paths) -> None:
    """Pair this host with a memserver that is secure, unless that was done."""
    if lender.secure and pairings.at(paths, parse_address(lender.address)) is None:
        owner = Owner(owner_socket(paths.memserver_runtime(lender.name)), lender.address)
        pairing.pair(token.parse(owner.create_token(_TOKEN_S, None, USER).token), paths)


def _start_one(name: str, size_bytes: int, paths: Paths, place: Place) -> Lender:
    log = paths.memserver_state(name) / "control.log"
    make_directory(log.parent, 0o700)
    log.unlink(missing_ok=True)
    options = {"name": name, "size": str(size_bytes), "reserve": "0", "port": "0", "control-port": "0"}
    if place.bind is not None:
        options["bind"] = place.bind
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    if place.secure:
        words.append("--secure")
    elif place.bind is not None:
        words.append("--insecure")
    child = processes.start_detached([*place.prefix, *processes.own("memserver", *words, "--json")], log_path=log)
    try:
        processes.wait_until(
            lambda: child.poll() is not None or _ready_line(log) is not None,
            timeout_s=_READY_TIMEOUT_S,
            what=f"memserver {name}",
        )
        ready = _ready_line(log)
        if ready is None:
            raise ProgramError(
                f"a memserver of {format_bytes(size_bytes)} does not start",
                why=_failure(log),
                hint="ghostbox doctor --role donor",
            )
    except BaseException:
        processes.terminate(child.pid)
        raise
    return Lender(name, child.pid, str(ready["control_address"]), place.secure)


def _ready_line(log: Path) -> dict[str, object] | None:
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            found = json.loads(line)
            if "control_address" in found:
                return dict(found)
    return None


def _failure(log: Path) -> str | None:
    """Return the reason that a memserver gave before it ended."""
    lines = log.read_text(errors="replace").strip().splitlines()
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            error = json.loads(line)["error"]
            return ": ".join(filter(None, (error["message"], error["why"])))
    return "\n".join(lines[-5:]) or None


def _is_ours(lender: Lender) -> bool:
    """Tell whether a process is the recorded memserver: its id may belong to another process by now."""
    try:
        words = Path(f"/proc/{lender.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"memserver" in words and lender.name.encode() in words and processes.pid_alive(lender.pid)


def _record_file(paths: Paths) -> Path:
    return paths.state / "demo.json"


def _write_record(lenders: Collection[Lender], paths: Paths) -> None:
    file = _record_file(paths)
    if not lenders:
        file.unlink(missing_ok=True)
        return
    make_directory(file.parent)
    state_files.replace(file, json.dumps([asdict(lender) for lender in lenders]).encode())
