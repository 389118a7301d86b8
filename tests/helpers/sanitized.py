# SPDX-License-Identifier: MIT
"""Build the C programs with sanitizers, in directories that are kept and rebuilt only if the sources changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from helpers.pager import Build, installed_build

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "pager": "qemu/pager/ghostbox-pager",
    "shim": "qemu/shim/libghostbox-shim.so",
    "memserver": "memserver/ghostbox-memserver",
    "client": "tests/helpers/memory-client",
}
# For each sanitizer: meson's name, the runtime that must be first in a process, and its options.
SANITIZERS = {
    "asan": ("address,undefined", "libasan.so", {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "halt_on_error=1"}),
    "tsan": ("thread", "libtsan.so", {"TSAN_OPTIONS": "exitcode=99"}),
}
COMPLAINTS = ("Sanitizer", "runtime error")


def _tool(name: str) -> str:
    """Return a build tool: of this Python's environment, or of the system."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is needed to build the sanitized programs")
    return found


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")


def _runtime(library: str) -> str:
    """Return where the compiler keeps a sanitizer's runtime."""
    done = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()).resolve())


def _built(kind: str, options: Iterable[str], targets: Iterable[str]) -> Path:
    """Build targets with these options of meson and return the build directory."""
    # A build directory belongs to one source tree: another clone must not use the programs of this tree.
    tree = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    directory = Path(tempfile.gettempdir()) / f"ghostbox-tests-{os.getuid()}" / f"{kind}-{tree}"
    with _locked(directory):
        if not (directory / "build.ninja").exists():
            shutil.rmtree(directory, ignore_errors=True)  # the earlier build was interrupted
            _run([_tool("meson"), "setup", "-Dwerror=true", *options, str(directory)])
        _run([_tool("ninja"), "-C", str(directory), *targets])
    return directory


def extra_build(kind: str, *options: str) -> dict[str, Path]:
    """Build everything with these options of meson and return where the programs are."""
    directory = _built(kind, options, TARGETS.values())
    return {name: directory / target for name, target in TARGETS.items()}


def _options(kind: str) -> tuple[str, ...]:
    return (f"-Db_sanitize={SANITIZERS[kind][0]}", "-Db_lundef=false", "-Dbuildtype=debugoptimized")


def sanitized_program(kind: str, target: str) -> tuple[Path, Mapping[str, str]]:
    """Build one program (``memserver/memserver-replay``) and return its path and additions to its environment."""
    return _built(kind, _options(kind), [target]) / target, SANITIZERS[kind][2]


def sanitized_build(kind: str) -> Build:
    """Build everything with ``asan`` (with UBSan) or ``tsan``."""
    _, library, env = SANITIZERS[kind]
    paths = extra_build(kind, *_options(kind))
    if kind == "tsan":
        # TSan sees no order between a reply on one connection and a request on another, so it reports a race for a
        # block that is written, then read, then written again.
        paths["memserver"] = installed_build().memserver
    return Build(**paths, preload_first=(_runtime(library),), env=env)
