# SPDX-License-Identifier: MIT
"""Make wheels of Python packages that are installed here, so that neither host nor donor needs the internet.

A wheel is a ZIP file of a package's files and of what is known about it (binary distribution format, PEP 427).
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ghostbox.errors import GhostboxError, Refused
from ghostbox.system import processes

PROJECT = "ghostbox"
_ROLE = "donor"
_NOT_THEIRS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}  # what an installation has added
_DATE = (1980, 1, 1, 0, 0, 0)  # the same content is the same file
_DOWNLOAD_S = 600.0


def needed(python: str) -> list[Distribution]:
    """Return the packages that a donor with this version of Python needs besides this project, as installed here.

    A requirement that holds only there is one if it is installed here; its version would not be known otherwise.

    Raises:
        GhostboxError: this project or one of the packages is not installed here.
    """
    there = {"python_version": python, "python_full_version": f"{python}.0"}
    found: dict[str, Distribution] = {}
    todo = [(PROJECT, frozenset({_ROLE}))]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        installed = _installed(name)
        found[name] = installed
        for requirement in map(Requirement, installed.requires or ()):
            wanted = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            holds_here = _holds(requirement, extras, {})
            if wanted in seen or not (
                holds_here or (_holds(requirement, extras, there) and _is_installed(requirement.name))
            ):
                continue
            seen.add(wanted)
            todo.append(wanted)
    del found[PROJECT]
    return [found[name] for name in sorted(found)]


def _holds(requirement: Requirement, extras: frozenset[str], environment: dict[str, str]) -> bool:
    """Tell whether a requirement counts for a package that was asked for with these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in (*extras, ""))


def _installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as err:
        raise GhostboxError(
            f"this installation lacks the Python package {name}, which a donor needs",
            hint="./bootstrap install installs what both roles need",
        ) from err


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def pack(packages: Iterable[Distribution], into: Path) -> None:
    """Write a wheel of each package.

    Raises:
        GhostboxError: a package was not installed from a wheel.
    """
    for package in packages:
        name = canonicalize_name(package.name).replace("-", "_")
        tags = re.findall(r"^Tag: *(\S+)", package.read_text("WHEEL") or "", re.MULTILINE)
        if not tags or package.files is None:
            raise GhostboxError(
                f"the Python package {package.name} was not installed from a wheel, and cannot be copied",
                hint=f"{sys.executable} -m pip install --force-reinstall {package.name}",
            )
        contents = {}
        for file in package.files:
            place = file.as_posix()
            if ".." in file.parts or "__pycache__" in file.parts or file.name in _NOT_THEIRS:
                continue
            contents[place] = Path(str(package.locate_file(file)))
        write(into / f"{name}-{package.version}-{tags[0]}.whl", f"{name}-{package.version}", contents)


def write(path: Path, stem: str, contents: Mapping[str, Path | bytes]) -> None:
    """Write a wheel. ``contents`` are its files by their places; ``stem`` is the name and version in its metadata."""
    record = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for place, source in sorted(contents.items()):
            data = source if isinstance(source, bytes) else source.read_bytes()
            mode = source.stat().st_mode & 0o777 if isinstance(source, Path) else 0o644
            entry = zipfile.ZipInfo(place, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100000 | mode) << 16
            wheel.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            record.append(f"{place},sha256={digest},{len(data)}")
        own = f"{stem}.dist-info/RECORD"
        wheel.writestr(zipfile.ZipInfo(own, _DATE), "\n".join([*record, f"{own},,"]) + "\n")


def download(packages: Sequence[Distribution], python: str, machine: str, into: Path) -> None:
    """Fetch wheels of the same versions for another version of Python.

    Raises:
        Refused: they cannot be fetched.
    """
    digits = python.replace(".", "")
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (36, 34, 31, 28, 24, 17)]
    argv = [
        *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--abi=cp{digits}", "--abi=abi3", "--abi=none", *platforms, f"--platform=manylinux2014_{machine}"),
        *("-d", str(into), *(f"{package.name}=={package.version}" for package in packages)),
    ]
    done = processes.feed(argv, timeout_s=_DOWNLOAD_S)
    if done.status != 0:
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Refused(
            f"the donor has Python {python}, this host {here}: packages for it are not here, and could not be fetched",
            why="\n".join(done.stderr.strip().splitlines()[-3:]) or None,
            hint="mend this host's way to its package index; or build GhostBox there: ./bootstrap install --role donor",
        )
