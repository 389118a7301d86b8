# SPDX-License-Identifier: MIT
"""Keep the images of this machine.

    images/NAME.json              describes the image, and names its directory; replaced in one step
    images/NAME@HASH-TIME/        the image's files; never written again once NAME.json names the directory
    images/NAME@HASH-TIME/image.json  a copy of NAME.json, for disks that still stand on it after NAME.json was replaced
    images/NAME@HASH-TIME/overlays  the VM disks that were made on it, a path a line; deleted disks do not count
    images/.NAME.new-XXXX/        a running build or import; renamed at its end, removed if it fails
    images/.NAME.lock             held (flock) while the image is built, imported or deleted

VMs' overlays name the base by its path, so a rebuild makes a new directory and leaves the old one to its overlays.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ghostbox.errors import ImageError, NotFound, Refused, UsageError
from ghostbox.images import imports, qemu_img
from ghostbox.images.build import Progress, build_files, check_space
from ghostbox.images.imports import backing_file
from ghostbox.images.model import Image, check_name, image_from_json
from ghostbox.images.recipe import Recipe
from ghostbox.system import locks, state_files
from ghostbox.units import format_bytes

_OVERLAYS = "overlays"
_DESCRIPTION = "image.json"


def _no_progress(_step: str) -> None:
    pass


class ImageStore:
    """Keeps the images below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, name: str) -> Image:
        """Return the image called ``name``.

        Raises:
            NotFound: there is no such image.
            ImageError: the image's files are gone.
        """
        try:
            return _whole_image(self._record(_checked(name)))
        except FileNotFoundError as err:
            raise NotFound(f"no image named '{name}'", hint=self._hint_for_missing(name)) from err

    def under(self, overlay: Path) -> Image | None:
        """Return the image that a VM's disk stands on, superseded or not; None if the disk does not exist.

        Only this image fits the disk: over another base the disk is garbage, and another kernel lacks its modules.

        Raises:
            ImageError: the disk stands on no image of this store.
        """
        if not overlay.exists():
            return None
        base = backing_file(overlay)
        with suppress(FileNotFoundError):
            if base is not None:
                return _whole_image(base.parent / _DESCRIPTION)
        for image in self.list():
            if image.disk == base:
                return image
        raise ImageError(
            f"{overlay} stands on no image that is known",
            why=f"its base is {base or 'not named in its header'}",
            hint=f"put its base back in its place; {overlay} has what the VM wrote",
        )

    def list(self) -> list[Image]:
        """Return all complete images, sorted by name."""
        images = []
        for record in sorted(self._root.glob("*.json")):
            try:
                images.append(self.get(record.stem))
            except ImageError:
                continue
        return images

    def build(
        self,
        recipe: Recipe,
        progress: Progress = _no_progress,
        *,
        name: str | None = None,
        force: bool = False,
        mirror: str | None = None,
        in_use: Collection[Path] | None = None,
    ) -> Image:
        """Return the image of ``recipe``, building it unless it exists.

        Args:
            recipe: what to build.
            progress: receives each step.
            name: of the image; None takes the recipe's.
            force: build even if an equal image exists.
            mirror: a Debian archive to use instead of those that apt knows.
            in_use: disks that overlays stand on, besides those that this store made; other superseded images are
                removed. None removes nothing.

        Raises:
            ImageError: there is no space or no mirror, or a tool is missing or failed.
        """
        name = check_name(name or recipe.name)
        with self._locked(name, progress):
            found = None if force else self._get_or_none(name)
            if found is not None and found.recipe_hash == recipe.hash:
                progress(f"{name}, built {found.created_at[:10]}")
                return found
            with self._new_directory(name) as new:
                built = build_files(recipe, new, progress, mirror)
                image = self._adopt(
                    new,
                    Image(
                        name=name,
                        disk=built.disk,
                        kernel=built.kernel,
                        initrd=built.initrd,
                        kernel_args=recipe.kernel_args,
                        virtual_bytes=recipe.disk_bytes,
                        recipe_hash=recipe.hash,
                        created_at=_now(),
                        kind="built",
                    ),
                )
            self._prune(image, in_use)
            return image

    def import_file(
        self, path: Path, name: str | None = None, sha256: str | None = None, progress: Progress = _no_progress
    ) -> Image:
        """Copy a cloud image (qcow2 or raw) into the store; the firmware will boot it.

        Args:
            path: the file.
            name: of the image; None derives it from the file's name.
            sha256: the SHA-256 that the file must have, in hex.
            progress: receives each step.

        Raises:
            ImageError: the file cannot be read, has another checksum, is no disk image, is cut off, or there is no
                space.
            Refused: an image of that name exists.
        """
        name = check_name(imports.name_from(path) if name is None else name)
        with self._locked(name, progress):
            if self._record(name).exists():
                raise Refused(
                    f"an image named '{name}' exists already",
                    hint=f"choose another name (--name), or: ghostbox image delete {name}",
                )
            progress("checking the file")
            digest, found = imports.inspect(path, sha256)
            with self._new_directory(name) as new:
                check_space(self._root, path.stat().st_size)
                progress("copying the disk")
                disk = new / "disk.qcow2"
                imports.copy(path, found, disk)
                return self._adopt(
                    new,
                    Image(
                        name=name,
                        disk=disk,
                        kernel=None,
                        initrd=None,
                        kernel_args="",
                        virtual_bytes=found.virtual_bytes,
                        recipe_hash=digest,
                        created_at=_now(),
                        kind="imported",
                    ),
                )

    def delete(self, name: str, in_use: Collection[Path]) -> None:
        """Remove an image.

        Args:
            name: which one.
            in_use: disks that overlays stand on (``backing_file`` of each VM's disk).

        Raises:
            NotFound: there is no such image.
            Refused: a VM's disk stands on the image.
        """
        check_name(name)
        if not self._record(name).exists():
            raise NotFound(f"no image named '{name}'", hint=self._hint_for_missing(name))
        with self._locked(name, _no_progress):
            directories = self._directories(name)
            if any(_is_used(directory, in_use) for directory in directories):
                raise Refused(
                    f"image '{name}' is the base of a VM's disk",
                    hint="it stays until no VM has it as its base; ghostbox list shows the VMs",
                )
            self._record(name).unlink(missing_ok=True)
            for directory in directories:
                shutil.rmtree(directory, ignore_errors=True)

    def create_overlay(self, image: Image, target: Path, size_bytes: int) -> None:
        """Make a VM's disk as an overlay of the image; the guest sees a disk of ``size_bytes``.

        Raises:
            ImageError: ``size_bytes`` is smaller than the image, or qemu-img failed.
        """
        if size_bytes < image.virtual_bytes:
            raise ImageError(
                f"a disk of {format_bytes(size_bytes)} is too small for image '{image.name}', "
                f"which has {format_bytes(image.virtual_bytes)}",
                hint=f"give vm.disk at least {format_bytes(image.virtual_bytes)}",
            )
        # The overlay is recorded first, so that no command of another installation takes the image for unused.
        with suppress(PermissionError), (image.directory / _OVERLAYS).open("a") as file:
            file.write(f"{target.absolute()}\n")
        qemu_img.create_overlay(image.disk, target, size_bytes)

    def _record(self, name: str) -> Path:
        return self._root / f"{name}.json"

    def _get_or_none(self, name: str) -> Image | None:
        try:
            return self.get(name)
        except (NotFound, ImageError):
            return None

    def _hint_for_missing(self, name: str) -> str:
        if name == "debian":
            return "ghostbox image build"
        if imports.is_file_name(name):
            return imports.advice(name)
        have = ", ".join(image.name for image in self.list())
        return f"there are: {have}" if have else "ghostbox image build"

    def _directories(self, name: str) -> tuple[Path, ...]:
        return tuple(sorted(self._root.glob(f"{name}@*")))

    @contextmanager
    def _locked(self, name: str, progress: Progress) -> Iterator[None]:
        """Hold the image's lock, and remove what a killed build of it left behind."""
        _make_traversable(self._root)
        file = self._root / f".{name}.lock"
        try:
            lock = locks.take(file)
        except locks.Held:
            progress(f"waiting for another command that works on image '{name}'")
            lock = locks.take(file, wait=True)
        try:
            for left in self._root.glob(f".{name}.new-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _new_directory(self, name: str) -> Iterator[Path]:
        new = Path(tempfile.mkdtemp(prefix=f".{name}.new-", dir=self._root))
        new.chmod(0o755)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _adopt(self, new: Path, image: Image) -> Image:
        """Give the finished directory its name and let the image's description name it."""
        stamp = image.created_at.translate(str.maketrans("", "", "-:+"))
        final = self._root / f"{image.name}@{image.recipe_hash[:12]}-{stamp}"
        for file in new.iterdir():
            file.chmod(0o644)
        new.rename(final)

        def moved(path: Path | None) -> Path | None:
            return None if path is None else final / path.name

        data = image.to_json() | {
            key: None if path is None else str(path)
            for key, path in (
                ("disk", moved(image.disk)),
                ("kernel", moved(image.kernel)),
                ("initrd", moved(image.initrd)),
            )
        }
        record = self._record(image.name)
        state_files.write(final / _DESCRIPTION, data, mode=0o644)
        state_files.write(record, data, mode=0o644)
        return image_from_json(data)

    def _prune(self, current: Image, in_use: Collection[Path] | None) -> None:
        if in_use is None:
            return
        for directory in self._directories(current.name):
            if directory != current.directory and not _is_used(directory, in_use):
                shutil.rmtree(directory, ignore_errors=True)


def _checked(name: str) -> str:
    """Return ``name`` if it may name an image; for a file's name the error says how to import the file."""
    try:
        return check_name(name)
    except UsageError as err:
        if imports.is_file_name(name):
            raise UsageError(f"'{name}' cannot name an image: it is a file's name", hint=imports.advice(name)) from err
        raise


def _whole_image(record: Path) -> Image:
    """Read an image's description, and check its files. Raises FileNotFoundError if ``record`` does not exist."""
    try:
        data = json.loads(record.read_text())
        # The image of an imported VM has relative paths, since the VM's directory may get another name.
        beside = {key: str(record.parent / data[key]) for key in ("disk", "kernel", "initrd") if data[key] is not None}
        image = image_from_json(data | beside)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ImageError(f"cannot read {record}: {err}", hint=f"remove {record}") from err
    for file in (image.disk, image.kernel, image.initrd):
        if file is not None and not file.is_file():
            raise ImageError(f"image '{image.name}' is damaged: {file} is missing", hint="ghostbox image build --force")
    return image


def _is_used(directory: Path, in_use: Collection[Path]) -> bool:
    """Tell whether a disk stands on an image: one of ``in_use``, or one that this store made and that still exists."""
    try:
        made = (directory / _OVERLAYS).read_text().splitlines()
    except OSError:
        made = []
    bases = [*in_use, *(base for base in map(backing_file, map(Path, made)) if base is not None)]
    return any(directory.resolve() in base.resolve().parents for base in bases)


def _make_traversable(directory: Path) -> None:
    """Make ``directory`` and its missing parents so that QEMU's own user can pass, whatever the umask is."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        except OSError as err:
            raise ImageError(f"cannot make the directory {path}: {err.strerror}") from err


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
