# SPDX-License-Identifier: MIT
"""Install, switch and remove a deployed donor: this file runs on the donor, where GhostBox is not installed yet.

The host sends it through ssh to the donor's python3, with a request (JSON) as its only argument; what is to be
installed follows on stdin. It answers by one line of JSON, and imports the standard library alone.

    PREFIX/deployed.json       marks the directory as ours; lists directories that were made for it
    PREFIX/versions/VERSION/   one version: bin/python3, lib/pythonX.Y/site-packages; never changed
    PREFIX/current             a link to the version in use
    PREFIX/arguments           the memserver's arguments, one a line
    PREFIX/bin/ghostbox        runs the version in use
    PREFIX/state, cache        of the donor

A version is unpacked under another name and tried before it gets its own. Whatever happens meanwhile (the connection is
cut, the disk is full, this process is ended), what was unpacked is removed, by this process or by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_MARK = "deployed.json"
_PARTIAL = ".partial-"
_TRY_S = 180


class Failed(Exception):
    """Is raised if a step cannot be done; ``why`` is the cause."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.message, self.why = message, why


def install(request: dict[str, Any], stream: IO[bytes]) -> dict[str, Any]:
    """Unpack a version from ``stream`` and try it; nothing uses it yet."""
    prefix = Path(request["prefix"])
    is_new = _take_possession(prefix)
    versions = prefix / "versions"
    try:
        versions.mkdir(exist_ok=True)
        with _locked(prefix):
            for left in versions.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left)
            partial = versions / f"{_PARTIAL}{request['version']}"
            try:
                native = _unpack(stream, partial, request["members"])
                _try(partial, native)
                os.sync()
                partial.rename(versions / request["version"])
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except BaseException:
        if is_new:
            with contextlib.suppress(Failed):  # the next step there removes what is left
                _remove_tree(prefix)
        raise
    return {"installed": request["version"]}


def switch(request: dict[str, Any], _stream: IO[bytes]) -> dict[str, Any]:
    """Let the installation use a version, with these arguments of the memserver."""
    prefix = Path(request["prefix"])
    _check_ours(prefix)
    with _locked(prefix):
        for name in ("bin", "state", "cache"):
            (prefix / name).mkdir(exist_ok=True)
        (prefix / "state").chmod(0o711)
        _write(prefix / "arguments", "".join(f"{word}\n" for word in request["arguments"]), 0o644)
        _write(prefix / "bin/ghostbox", _launcher(prefix, request["runtime"]), 0o755)
        draft = prefix / "current.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(f"versions/{request['version']}")
        draft.replace(prefix / "current")
        _link(prefix, Path(request["link"]))
    return {"current": request["version"]}


def tidy(request: dict[str, Any], _stream: IO[bytes]) -> dict[str, Any]:
    """Remove versions that are not in use: neither the current one, nor one whose programs still run."""
    prefix = Path(request["prefix"])
    _check_ours(prefix)
    current = (prefix / "current").resolve()
    removed = []
    with _locked(prefix):
        for version in (prefix / "versions").iterdir():
            if version.resolve() != current and not _users_of(version):
                shutil.rmtree(version)
                removed.append(version.name)
    return {"removed": sorted(removed)}


def remove(request: dict[str, Any], _stream: IO[bytes]) -> dict[str, Any]:
    """Remove the installation with all that it has made."""
    prefix, runtime, link = (Path(request[name]) for name in ("prefix", "runtime", "link"))
    _check_ours(prefix)
    running = _users_of(prefix)
    if running:
        raise Failed(
            f"programs of {prefix} still run: {', '.join(f'{pid} ({name})' for pid, name in running)}",
            "one of them may hold memory that hosts use",
        )
    if link.is_symlink() and link.readlink() == prefix / "bin/ghostbox":
        link.unlink()
    if os.path.lexists(runtime):
        _remove_all([runtime])
    _remove_tree(prefix)
    return {"removed": str(prefix)}


def _take_possession(prefix: Path) -> bool:
    """Make the directory; return whether it is new."""
    if (prefix / _MARK).is_file():
        return False
    if os.path.lexists(prefix):
        raise Failed(f"{prefix} exists, and `ghostbox donor deploy` has not made it")
    made = [str(place) for place in (prefix, *prefix.parents) if not place.exists()]
    prefix.mkdir(parents=True)
    _write(prefix / _MARK, json.dumps({"made": made}), 0o644)
    return True


def _check_ours(prefix: Path) -> None:
    if not (prefix / _MARK).is_file():
        raise Failed(f"{prefix} was not made by `ghostbox donor deploy`")


@contextlib.contextmanager
def _locked(prefix: Path) -> Iterator[None]:
    """Keep other hosts from changing the installation meanwhile."""
    with (prefix / "lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise Failed(f"another `ghostbox donor deploy` is at work in {prefix}") from err
        yield


def _unpack(stream: IO[bytes], partial: Path, n_members: int) -> Path:
    """Unpack wheels and libraries; return the directory of the C programs."""
    site = partial / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    native = site / "ghostbox/native"
    native.mkdir(parents=True)
    n_seen = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None:
                    continue
                data = content.read()
                if len(data) != member.size:
                    break
                if member.name.endswith(".whl"):
                    _unpack_wheel(data, site)
                else:
                    spare = native / "lib.spare"
                    spare.mkdir(exist_ok=True)
                    _write_bytes(spare / Path(member.name).name, data, 0o644)
                n_seen += 1
    except (tarfile.TarError, EOFError, zipfile.BadZipFile) as err:
        raise Failed("the copy is incomplete: the connection was cut half-way", str(err)) from err
    if n_seen != n_members:
        raise Failed("the copy is incomplete: the connection was cut half-way", f"{n_seen} of {n_members} files came")
    base = Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))
    (partial / "bin").mkdir()
    (partial / "bin/python3").symlink_to(base)
    version = ".".join(map(str, sys.version_info[:3]))
    _write(
        partial / "pyvenv.cfg",
        f"home = {base.parent}\ninclude-system-site-packages = false\nversion = {version}\n",
        0o644,
    )
    return native


def _unpack_wheel(data: bytes, site: Path) -> None:
    """Unpack a wheel (binary distribution format, PEP 427); its scripts are not needed."""
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        for entry in wheel.infolist():
            parts = Path(entry.filename).parts
            if parts[0].endswith(".data"):
                if parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            if entry.is_dir() or ".." in parts or not parts or Path(entry.filename).is_absolute():
                continue
            target = site.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_bytes(target, wheel.read(entry), 0o755 if entry.external_attr >> 16 & 0o111 else 0o644)


def _try(partial: Path, native: Path) -> None:
    """See whether the programs run on this machine. The libraries that came along are used only if they have to be.

    The system's own libraries get the system's security updates.
    """
    program, spare = native / "ghostbox-memserver", native / "lib.spare"
    why = _said([program, "--version"])
    if why is not None and spare.exists():
        spare.rename(native / "lib")
        why = _said([program, "--version"])
    elif spare.exists():
        shutil.rmtree(spare)
    if why is not None:
        raise Failed("the memory server does not run on this machine", why)
    why = _said([partial / "bin/python3", "-P", "-c", "import ghostbox.cli.memserver, ghostbox.cli.deployed"])
    if why is not None:
        raise Failed("the Python packages do not work on this machine", why)


def _said(argv: list[str | Path]) -> str | None:
    """Run a program; return what it says if it fails, else None."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GHOSTBOX_", "PYTHON", "LD_"))}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_TRY_S, env=clean)
    except (OSError, subprocess.TimeoutExpired) as err:
        return str(err)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return None if done.returncode == 0 else "\n".join(lines[-3:]) or f"status {done.returncode}"


def _launcher(prefix: Path, runtime: str) -> str:
    places = {"STATE": f"{prefix}/state", "RUNTIME": runtime, "CACHE": f"{prefix}/cache"}
    lines = [f"export GHOSTBOX_{kind}_DIR={shlex.quote(place)}" for kind, place in places.items()]
    text = "\n".join(lines)
    return f"""#!/bin/sh
# Written by `ghostbox donor deploy`.
{text}
unset GHOSTBOX_NATIVE_DIR PYTHONPATH PYTHONHOME
exec {shlex.quote(f"{prefix}/current/bin/python3")} -P -m ghostbox "$@"
"""


def _link(prefix: Path, link: Path) -> None:
    """Put the command on the PATH, unless something of that name is there."""
    if os.path.lexists(link):
        return
    made = [str(place) for place in link.parents if not place.exists()]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(prefix / "bin/ghostbox")
    if made:
        known = json.loads((prefix / _MARK).read_text())["made"]
        _write(prefix / _MARK, json.dumps({"made": [*known, *made]}), 0o644)


def _remove_tree(prefix: Path) -> None:
    """Remove the installation, and the directories that were made for it if they are empty now.

    The arguments go first and the mark last: what was left half-way is still ours, and has no memserver to stop.
    """
    mark = prefix / _MARK
    made = [Path(each) for each in json.loads(mark.read_text())["made"]]
    rest = [each for each in prefix.iterdir() if each != mark]
    _remove_all(sorted(rest, key=lambda each: each.name != "arguments"))
    mark.unlink()
    prefix.rmdir()
    for place in sorted(made, key=lambda each: len(each.parts), reverse=True):
        with contextlib.suppress(OSError):
            place.rmdir()


def _remove_all(places: list[Path]) -> None:
    """Remove files and directories; what cannot be removed keeps none of the others."""
    left: list[tuple[str, BaseException]] = []
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, onerror=lambda _function, path, caught: left.append((path, caught[1])))
        else:
            place.unlink()
    if left:
        path, error = left[0]
        raise Failed(f"not all could be removed: {path}", str(getattr(error, "strerror", error)))


def _users_of(place: Path) -> list[tuple[int, str]]:
    """Return the processes whose program, or whose first word, lies in a directory: their ids and names."""
    begins = f"{place}/"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            runs = os.fsdecode(words[0]).startswith(begins)
            with contextlib.suppress(OSError):
                runs = runs or str((entry / "exe").readlink()).startswith(begins)
            if runs:
                found.append((int(entry.name), (entry / "comm").read_text().strip()))
    return found


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file as a whole: the former one stays until the new one is there."""
    draft = path.with_name(f"{path.name}.new")
    _write_bytes(draft, text.encode(), mode)
    draft.replace(path)


def _write_bytes(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def _end(*_: object) -> None:
    raise KeyboardInterrupt


ACTIONS = {"install": install, "switch": switch, "tidy": tidy, "remove": remove}


def run(argument: str, stream: IO[bytes]) -> dict[str, Any]:
    """Do what a request says, and return the answer."""
    request = json.loads(argument)
    os.umask(0o022)
    try:
        return {"done": ACTIONS[request["action"]](request, stream)}
    except Failed as err:
        return {"failed": err.message, "why": err.why}
    except OSError as err:
        where = f"{err.filename}: " if err.filename else ""
        return {"failed": f"{where}{(err.strerror or str(err)).lower()}", "why": ""}


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _end)
    print(json.dumps(run(sys.argv[1], sys.stdin.buffer)), flush=True)
