#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Unpack and pack the inputs that the fuzzers found: each target has an archive, beside the named inputs in ``seeds/``.

``corpus.py unpack TARGET DIRECTORY`` writes the archive's inputs and the seeds into the directory.
``corpus.py pack TARGET BUILD DIRECTORY`` lets the fuzzer (built by clang in BUILD, see fuzz.c) choose those inputs of
the directory that reach code which neither the seeds nor earlier inputs reach, and writes their archive.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent


def archive_of(target: str) -> Path:
    """Return the path of a target's archive; a target without anonymous inputs has no archive."""
    return HERE / target / "corpus.tar.xz"


def seeds_of(target: str) -> Path:
    """Return the directory of a target's named inputs."""
    return HERE / target / "seeds"


def archived(target: str) -> dict[str, bytes]:
    """Return the inputs in a target's archive, by name."""
    if not archive_of(target).exists():
        return {}
    with tarfile.open(archive_of(target)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def tar_of(inputs: Mapping[str, bytes]) -> bytes:
    """Return a tar file of inputs: its bytes depend on the inputs only, not on the user or the time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(inputs.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack(target: str, directory: Path) -> list[Path]:
    """Write a target's seeds and archived inputs into a directory and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    for seed in seeds_of(target).iterdir():
        shutil.copyfile(seed, directory / seed.name)
    for name, data in archived(target).items():
        (directory / name).write_bytes(data)
    return sorted(directory.iterdir())


def pack(target: str, build: Path, directory: Path) -> None:
    """Merge a directory of inputs into the target's archive."""
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(seeds_of(target), kept, dirs_exist_ok=True)
        fuzzer = build / "tests/fuzz" / f"{target}-fuzz"
        subprocess.run([fuzzer, "-merge=1", "-max_len=1048576", kept, directory], check=True, stderr=subprocess.DEVNULL)
        seeds = {path.name for path in seeds_of(target).iterdir()}
        inputs = {path.name: path.read_bytes() for path in Path(kept).iterdir() if path.name not in seeds}
    archive_of(target).write_bytes(lzma.compress(tar_of(inputs), preset=9 | lzma.PRESET_EXTREME))
    print(f"{target}: {len(seeds)} seeds, {len(inputs)} more inputs")


def main() -> None:
    """Unpack or pack, as the command line asks."""
    match sys.argv[1:]:
        case ["unpack", target, directory]:
            unpack(target, Path(directory))
        case ["pack", target, build, directory]:
            pack(target, Path(build), Path(directory))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
