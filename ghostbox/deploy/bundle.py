# SPDX-License-Identifier: MIT
"""Put together what is copied to a donor: wheels of this project and of what it needs, and the C program's libraries.

A bundle is a tar file in the cache, of the name of its version: the project's version and a digest of all that is in
it. What was made once is used again.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

import ghostbox
from ghostbox import __version__, paths
from ghostbox.deploy import wheels
from ghostbox.deploy.plan import Needs
from ghostbox.errors import ConfigError, GhostboxError, hint_for
from ghostbox.paths import Paths, make_directory
from ghostbox.system import locks, processes, state_files

_PROGRAM = "ghostbox-memserver"
_NOT_A_DONORS = {"__pycache__", "native", "data"}
# Parts of the C library: the donor's system has its own.
_SYSTEMS_OWN = re.compile(r"(ld-linux|linux-vdso|lib(c|m|dl|rt|pthread|util|resolv)\.so)")
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)\0")
_CHUNK_BYTES = 1 << 20
_FORMAT = 1
"""The form of bundles, as `agent` reads them: another form is another version."""


@dataclass(frozen=True)
class Bundle:
    """Is a bundle in the cache. ``members`` is the number of files in it."""

    path: Path
    needs: Needs
    members: int

    def parts(self) -> Iterator[bytes]:
        """Yield its bytes."""
        with self.path.open("rb") as stream:
            while part := stream.read(_CHUNK_BYTES):
                yield part


def machine() -> str:
    """Return this host's processor, as uname says it."""
    return os.uname().machine


def make(python: str, places: Paths) -> Bundle:
    """Return the bundle for donors with a version of Python (``3.11``); it is made if the cache has it not.

    Raises:
        GhostboxError: a part of this installation is missing, or the cache cannot be written.
        Refused: packages for that version of Python cannot be fetched.
    """
    program = places.program(_PROGRAM)
    own, libraries, packages = _own_files(program), _libraries(program), wheels.needed(python)
    named = [f"{package.name}=={package.version}" for package in packages]
    digest = hashlib.sha256("\n".join([str(_FORMAT), python, machine(), *named]).encode())
    for place, source in sorted([*own.items(), *((each.name, each) for each in libraries)]):
        digest.update(f"\0{place}\0".encode() + (source if isinstance(source, bytes) else source.read_bytes()))
    version = f"{__version__}-{digest.hexdigest()[:12]}"
    path = places.cache / "donor-bundles" / f"py{python}-{version}.tar"
    try:
        make_directory(path.parent, 0o700)
        with locks.held(path.with_name("lock"), wait=True):
            if not path.exists():
                _remove_others(path, python)
                state_files.replace(path, _packed(python, own, libraries, packages))
        return _opened(path, version)
    except OSError as err:
        raise GhostboxError(
            f"cannot make the bundle {path}: {err.strerror or err}", hint=hint_for(err, "set GHOSTBOX_CACHE_DIR")
        ) from err


def _remove_others(path: Path, python: str) -> None:
    """Remove bundles of other versions: they are not needed any more."""
    for other in path.parent.glob(f"py{python}-*.tar"):
        other.unlink()


def _packed(
    python: str, own: dict[str, Path | bytes], libraries: Sequence[Path], packages: list[Distribution]
) -> bytes:
    with tempfile.TemporaryDirectory(prefix="ghostbox-bundle-") as name:
        place = Path(name)
        wheels.write(place / f"{_stem()}-py3-none-linux_{machine()}.whl", _stem(), own)
        if python == f"{sys.version_info[0]}.{sys.version_info[1]}":
            wheels.pack(packages, place)
        else:
            wheels.download(packages, python, machine(), place)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for wheel in sorted(place.iterdir()):
                archive.add(wheel, f"wheels/{wheel.name}", filter=_anonymous)
            for library in libraries:
                archive.add(library.resolve(), f"libraries/{library.name}", filter=_anonymous)
        return packed.getvalue()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _opened(path: Path, version: str) -> Bundle:
    """Read from a bundle what it needs; the ZIP format has the sizes of what is in a wheel."""
    unpacked, members, glibc = 0, 0, (2, 17)
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            members += 1
            if not member.name.endswith(".whl"):
                unpacked += member.size
                glibc = max(glibc, needed_glibc(stream.read()))
                continue
            with zipfile.ZipFile(io.BytesIO(stream.read())) as wheel:
                for entry in wheel.infolist():
                    unpacked += entry.file_size
                    if entry.filename.endswith(_PROGRAM) or ".so" in Path(entry.filename).name:
                        glibc = max(glibc, needed_glibc(wheel.read(entry)))
    needs = Needs(version, machine(), glibc, path.stat().st_size, unpacked)
    return Bundle(path, needs, members)


def needed_glibc(program: bytes) -> tuple[int, int]:
    """Return the newest version of glibc whose symbols a program or library names (its .gnu.version_r, elf(5))."""
    named = [(int(major), int(minor)) for major, minor in _GLIBC.findall(program)]
    return max(named, default=(2, 0))


def _stem() -> str:
    return f"{wheels.PROJECT}-{__version__}"


def _own_files(program: Path) -> dict[str, Path | bytes]:
    """Return this project's files for its wheel, by their places in it: a donor needs one of the C programs."""
    package = Path(ghostbox.__file__).resolve().parent
    found: dict[str, Path | bytes] = {}
    for file in sorted(package.rglob("*")):
        inner = file.relative_to(package)
        if file.is_file() and not _NOT_A_DONORS.intersection(inner.parts):
            found[f"ghostbox/{inner.as_posix()}"] = file
    found[f"ghostbox/native/{_PROGRAM}"] = program
    found["ghostbox/data/config.yaml"] = paths.data_file("config.yaml")
    tag = f"py3-none-linux_{machine()}"
    about = f"{_stem()}.dist-info"
    found[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {wheels.PROJECT}\nVersion: {__version__}\n".encode()
    found[f"{about}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: ghostbox\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    return found


def _libraries(program: Path) -> list[Path]:
    """Return the libraries that the C program needs and that are not parts of the C library: ldd(1)."""
    said = processes.run(["ldd", program], timeout_s=60)
    found = []
    for name, place in re.findall(r"^\s*(\S+) => (\S+)", said, re.MULTILINE):
        if place == "not":
            raise ConfigError(f"{program} lacks {name} on this host", hint="./bootstrap install")
        if not _SYSTEMS_OWN.match(name):
            found.append(Path(place).with_name(name))
    return sorted(found)
