# SPDX-License-Identifier: MIT
"""Build a guest image from Debian's packages with mmdebstrap, mke2fs and qemu-img; no mount, loop device or root.

mmdebstrap unpacks and configures the packages in namespaces of its own (``--mode=unshare``: if it is killed, all its
processes die with it). Inside them, ``images/export.sh`` writes the kernel, the initrd and the file system; then
qemu-img makes the qcow2. Everything happens in one scratch directory, which is always removed.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import DeadlineExceeded, ImageError
from ghostbox.images import mirrors, qemu_img
from ghostbox.images.recipe import Recipe
from ghostbox.system import processes
from ghostbox.units import format_bytes

Progress = Callable[[str], None]

BUILD_TIMEOUT_S = 3600.0

_log = logging.getLogger(__name__)
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "xz": "xz-utils",
}
_STEP = re.compile(r"^I: (?P<step>(?:running|downloading|extracting|installing|cleaning) .*?)\.*$", re.MULTILINE)
_DISK_FULL = re.compile(r"No space left on device|Could not allocate block|ENOSPC", re.IGNORECASE)


@dataclass(frozen=True)
class BuiltFiles:
    """Holds the files that a build leaves in its output directory."""

    disk: Path
    kernel: Path
    initrd: Path


def build_files(recipe: Recipe, out: Path, progress: Progress, mirror: str | None = None) -> BuiltFiles:
    """Build the image of ``recipe`` into the empty directory ``out``.

    Args:
        recipe: what to build.
        out: an empty directory on the file system that will keep the image.
        progress: receives each step.
        mirror: a Debian archive to use instead of those that apt knows.

    Raises:
        ImageError: a tool is missing, the disk is or becomes full, or the build fails.
    """
    _check_tools()
    check_user(getpass.getuser(), os.geteuid(), _subordinate_ids())
    with _scratch_directory(out) as scratch:
        check_space(scratch, recipe.build_space_bytes)
        _write_tree(recipe, scratch / "tree")
        _write_setup(recipe, scratch / "setup.sh")
        exported = scratch / "export"
        exported.mkdir()
        exported.chmod(0o777)  # the namespace's root, which is another user, writes here
        argv = _mmdebstrap_argv(recipe, scratch, mirrors.sources_list(recipe.suite, recipe.components, mirror))
        _run_logged(argv, scratch, recipe.build_space_bytes, progress)
        progress("making the qcow2 disk")
        built = BuiltFiles(out / "disk.qcow2", out / "vmlinuz", out / "initrd.img")
        try:
            qemu_img.convert(exported / "disk.raw", built.disk)
            for made in (built.kernel, built.initrd):
                shutil.copyfile(exported / made.name, made)
        except (ImageError, OSError) as err:
            raise _explained(str(err), scratch, recipe.build_space_bytes) from err
        return built


def check_space(directory: Path, needed_bytes: int) -> None:
    """Check that the file system of ``directory`` has enough free space.

    Raises:
        ImageError: the file system has less than ``needed_bytes``.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise _disk_full(directory, needed_bytes, free_bytes)


def _disk_full(directory: Path, needed_bytes: int, free_bytes: int) -> ImageError:
    return ImageError(
        f"no space for the image in {directory}: {format_bytes(needed_bytes)} needed, {format_bytes(free_bytes)} free",
        hint="free some space, or set GHOSTBOX_CACHE_DIR to a directory with enough",
    )


def _check_tools() -> None:
    tools = TOOLS if os.geteuid() == 0 else {**TOOLS, "newuidmap": "uidmap"}
    missing = {tool: package for tool, package in tools.items() if processes.which(tool) is None}
    if missing:
        raise ImageError(
            f"cannot build an image without {', '.join(sorted(missing))}",
            hint=f"sudo apt install {' '.join(sorted(missing.values()))}",
        )


def check_user(user: str, uid: int, subordinate_ids: str) -> None:
    """Check that a user other than root may have a namespace with more than one user id.

    Args:
        user: login name.
        uid: its number.
        subordinate_ids: content of /etc/subuid, lines of ``name-or-uid:first:count`` (subuid(5)).

    Raises:
        ImageError: no line is for this user.
    """
    if uid == 0 or any(line.split(":")[0] in (user, str(uid)) for line in subordinate_ids.splitlines()):
        return
    raise ImageError(
        f"user '{user}' cannot build an image: no subordinate user ids in /etc/subuid",
        hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}, or build it as root",
    )


def _subordinate_ids() -> str:
    try:
        return Path("/etc/subuid").read_text()
    except OSError:
        return ""


@contextmanager
def _scratch_directory(out: Path) -> Iterator[Path]:
    """Make a directory for the build, and remove it at the end of the block.

    For a user other than root it is in TMPDIR: the namespace's root cannot enter that user's cache.
    """
    parent = out if os.geteuid() == 0 else Path(tempfile.gettempdir())
    scratch = Path(tempfile.mkdtemp(prefix="ghostbox-build-", dir=parent))
    scratch.chmod(0o1777 if os.geteuid() else 0o755)
    try:
        yield scratch
    finally:
        _remove_tree(scratch)


def _remove_tree(directory: Path) -> None:
    """Remove what a build left; never walk into a mount, whose files belong to something else."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    inside = [line.split()[4] for line in mounts if line.split()[4].startswith(f"{directory}/")]
    if inside:
        _log.warning("%s is left behind: %s is mounted in it", directory, inside[0])
        return
    shutil.rmtree(directory, ignore_errors=True)


def _write_tree(recipe: Recipe, tree: Path) -> None:
    """Write the recipe's files in the places that they have in the guest; a masked unit is a link to /dev/null."""
    for file in recipe.files:
        target = tree / file.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.text)
        target.chmod(file.mode)
    units = tree / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for unit in recipe.masked_units:
        (units / unit).symlink_to("/dev/null")
    for directory in [tree, *(path for path in tree.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)


def _write_setup(recipe: Recipe, script: Path) -> None:
    script.write_text("\n".join(("set -eu", *recipe.commands, "")))
    script.chmod(0o644)


def _mmdebstrap_argv(recipe: Recipe, scratch: Path, sources: Sequence[str]) -> list[str]:
    quoted = shlex.quote
    modules = " ".join(quoted(module) for module in recipe.initrd_modules)
    export = f'sh {quoted(str(recipe.export_script))} "$1" {quoted(str(scratch / "export"))} {recipe.disk_bytes}'
    return [
        "mmdebstrap",
        "--mode=unshare",
        "--variant=apt",
        "--format=null",
        *(f"--aptopt={option}" for option in mirrors.apt_options()),
        '--aptopt=Acquire::Languages "none"',
        f"--include={','.join(recipe.packages)}",
        f'--essential-hook=cp -r --no-dereference --preserve=mode {quoted(str(scratch / "tree"))}/. "$1"/',
        f'--customize-hook=chroot "$1" sh -s < {quoted(str(scratch / "setup.sh"))}',
        f"--customize-hook={export} {modules}",
        recipe.suite,
        "-",
        *sources,
    ]


def _run_logged(argv: Sequence[str], scratch: Path, needed_bytes: int, progress: Progress) -> None:
    """Run mmdebstrap in a process group of its own, report its steps, and end it if this command is interrupted."""
    log = scratch / "log"
    child = processes.start_detached(argv, log_path=log, env=_environment(scratch), inherit_env=False)
    try:
        said: list[str] = []

        def ended() -> bool:
            _report_steps(log, said, progress)
            return child.poll() is not None

        processes.wait_until(ended, timeout_s=BUILD_TIMEOUT_S, what="building the guest image", interval_s=0.2)
    except BaseException:
        _end_group(child.pid)
        child.wait()
        raise
    if child.returncode != 0:
        raise _explained(log.read_text(errors="replace"), scratch, needed_bytes)


def _environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the build: of the caller's, only what tells how to reach the network.

    The packages' scripts inherit it. A PYTHONDONTWRITEBYTECODE, say, would make an image whose guests compile
    cloud-init at their first boot.
    """
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {**proxies, "TMPDIR": str(scratch), "PATH": processes.search_path(), "LC_ALL": "C.UTF-8"}


def _report_steps(log: Path, said: list[str], progress: Progress) -> None:
    for match in list(_STEP.finditer(log.read_text(errors="replace")))[len(said) :]:
        said.append(match["step"])
        progress(match["step"])


def _end_group(pid: int) -> None:
    """End mmdebstrap: SIGTERM lets it clean up, SIGKILL ends the rest (its namespaces go with it)."""
    for sig, wait_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(pid, sig)
        with suppress(DeadlineExceeded):
            processes.wait_until(lambda: not processes.pid_alive(pid), timeout_s=wait_s, what="end of mmdebstrap")
            return


def _explained(output: str, scratch: Path, needed_bytes: int) -> ImageError:
    """Return the error for a failed tool's output."""
    if _DISK_FULL.search(output):
        return _disk_full(scratch.parent, needed_bytes, shutil.disk_usage(scratch).free)
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("I:")]
    return ImageError(
        "cannot build the guest image",
        why="\n".join(lines[-6:]) or None,
        hint="ghostbox -vv image build shows all output; --mirror URI takes another Debian mirror",
    )
