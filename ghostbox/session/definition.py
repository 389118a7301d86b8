# SPDX-License-Identifier: MIT
"""What a VM is to be: its definition on disk, and what a command changes in it (`config.definition` has the rules).

A VM that an earlier version made has a record and no definition: it gets one from its record, and for what a record
does not say (the key to let in, the cloud-init file) from the configuration of the command that comes first.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox.config import Config, ExtraDisk, PortForward, definition, from_settings
from ghostbox.config.kinds import Network, Share
from ghostbox.config.rewrite import rewritten
from ghostbox.errors import GhostboxError, Refused, exhausted
from ghostbox.paths import Paths, VmPaths, make_directory
from ghostbox.session.record import Book, Record
from ghostbox.tiering import How
from ghostbox.units import exact_bytes, format_bytes


@dataclass(frozen=True)
class Change:
    """A key that gets another value; ``before`` and ``after`` are as people write them."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Return it as a sentence."""
        return f"{self.key} is now {_shown(self.after)}, it was {_shown(self.before)}"


@dataclass(frozen=True)
class Defined:
    """A VM's definition with what a command changes in it: nothing is written yet.

    ``text`` is the file's new text, ``ignored`` are lines about settings that lie around and do not count.
    """

    config: Config
    text: str
    changes: tuple[Change, ...] = ()
    ignored: tuple[str, ...] = ()


def settle(book: Book, config: Config, removed: Collection[str] = ()) -> Defined:
    """Return what the VM is to be: one that is there takes what ``config`` has from the command line, a new one all.

    Args:
        book: the VM's record, loaded.
        config: the configuration of the command.
        removed: keys that are taken out of the definition.

    Raises:
        ConfigError: the definition on disk is wrong, or a key in ``removed`` is none of a definition's.
        Refused: a change that this VM cannot take.
    """
    if book.record is None:
        return Defined(config, definition.new_text(config.vm.name, definition.frozen(config)))
    for name in removed:
        definition.check_key(name, "--unset")
    text = text_of(book.files, book.record, config)
    before = parse(book.files, text)
    names = [name for name in definition.vm_keys() if name in config.given and name not in removed]
    names = [name for name in names if config.value(name) != before.value(name) or before.origin(name) == "default"]
    if names or removed:
        text = rewritten(text, {name: config.written(name) for name in names}, sorted(removed))
    found = compare(book.record, before, parse(book.files, text), text)
    after = definition.combined(found.config, config, names)
    return Defined(after, text, found.changes, _ignored(config, after, book.record.name))


def compare(record: Record, before: Config, after: Config, text: str) -> Defined:
    """Return a definition whose values were ``before`` and are ``after``.

    Raises:
        Refused: a change that this VM cannot take.
    """
    changes = tuple(
        Change(name, before.written(name), after.written(name))
        for name in definition.vm_keys()
        if before.value(name) != after.value(name)
    )
    _check(record, after)
    return Defined(after, text, changes)


def defined(name: str, paths: Paths, config: Config) -> Config:
    """Return the configuration of a VM that is there; ``config`` says what is not the VM's own. Changes nothing.

    Raises:
        NotFound: no such VM.
        ConfigError: the definition on disk is wrong.
    """
    book = Book(paths.vm(name))
    text = text_of(book.files, book.need(name, paths), config)
    return definition.combined(parse(book.files, text), config, ())


def text_of(files: VmPaths, record: Record, config: Config) -> str:
    """Return the definition's text: what is on disk, or what is made of the record.

    Raises:
        GhostboxError: it cannot be read.
    """
    try:
        return files.definition.read_text(encoding="utf-8")
    except FileNotFoundError:
        return definition.new_text(record.name, definition.frozen(_from_record(record, config)))
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise GhostboxError(f"cannot read the definition of VM '{record.name}', {files.definition}: {reason}") from err


def parse(files: VmPaths, text: str) -> Config:
    """Return what a definition's text says of the VM with these files.

    Raises:
        ConfigError: it is wrong; the message names file and line.
    """
    return definition.parse(text, files.definition, files.state.name, files.state)


def keep(files: VmPaths, text: str) -> None:
    """Write the definition, in one step, durably.

    Raises:
        GhostboxError: it cannot be written; what was there stays.
    """
    make_directory(files.state)
    draft = files.definition.with_suffix(".new")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(files.definition)
    except OSError as err:
        draft.unlink(missing_ok=True)
        hint = None if (known := exhausted(err)) is None else known.hint
        raise GhostboxError(f"cannot write {files.definition}: {err.strerror}", hint=hint) from err


def add_donor(book: Book, address: str) -> None:
    """Have a definition that names its donors name one more: the VM's next start uses it, too.

    Raises:
        ConfigError: the definition on disk is wrong.
        GhostboxError: it cannot be written.
    """
    if not book.files.definition.exists() or book.record is None:
        return
    text = book.files.definition.read_text(encoding="utf-8")
    named = parse(book.files, text).pool.donors
    if named and address not in named:
        keep(book.files, rewritten(text, {"pool.donors": [*named, address]}))


def _check(record: Record, after: Config) -> None:
    """Refuse what a VM that has a disk cannot become. Nothing that is said here may cost anybody data."""
    if record.new:
        return
    if after.vm.image != record.image:
        raise Refused(
            f"VM '{record.name}' was made from image '{record.image}', not '{after.vm.image}'",
            why="its disk stands on that image, and would be garbage on another one",
            hint=f"make another VM: ghostbox up OTHER-NAME --image {after.vm.image}",
        )
    if after.vm.disk_bytes < record.disk_bytes:
        raise Refused(
            f"the disk of VM '{record.name}' has {format_bytes(record.disk_bytes)} and cannot shrink"
            f" to {format_bytes(after.vm.disk_bytes)}",
            why="the guest's file system is on it",
            hint=f"leave --disk out, or give {exact_bytes(record.disk_bytes)} or more",
        )

    for number, (size_bytes, wanted) in enumerate(zip(record.disks, after.vm.disks, strict=False), start=2):
        if wanted.size_bytes < size_bytes:
            raise Refused(
                f"disk{number} of VM '{record.name}' has {format_bytes(size_bytes)} and cannot shrink"
                f" to {format_bytes(wanted.size_bytes)}",
                why="the guest's file system is on it",
                hint=f"give its size, {exact_bytes(size_bytes)}, or more",
            )


def _ignored(config: Config, defined: Config, name: str) -> tuple[str, ...]:
    keys = definition.lying_around(config, defined)
    if not keys:
        return ()
    places = ", ".join(dict.fromkeys(config.origin(key) for key in keys))
    return (
        f"note: VM '{name}' stays as it is defined; other values for {', '.join(keys)} lie around: {places}",
        f"      to see its definition: ghostbox config show --vm {name} --origin; to change it: ghostbox set {name}",
    )


def _from_record(record: Record, config: Config) -> Config:
    """Return the configuration of a VM that was made before there were definitions."""
    defaults = from_settings({}, Path("/"))
    values = {
        name: config.value(name)
        for name in definition.vm_keys()
        if name not in config.given and config.origin(name) != "default"
    }
    values.update(_recorded(record))
    changed = {name: value for name, value in values.items() if value != defaults.value(name)}
    return defaults.replaced({"vm.name": record.name, **changed}, dict.fromkeys(changed, "record"))


def _recorded(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {
        "vm.memory": record.memory_bytes,
        "vm.remote_memory": record.remote_memory_bytes,
        "vm.cpus": record.cpus,
        "vm.disk": record.disk_bytes,
        "vm.image": record.image,
        "vm.user": record.user,
        "vm.disks": tuple(map(ExtraDisk, record.disks)),
        "vm.shares": tuple(map(Share().parse, record.shares)),
        "vm.network": Network().parse(record.network),
        "vm.ports": tuple(PortForward(host, guest) for host, guest in record.forwards),
        "pool.cache": record.cache_bytes,
        "pool.donors": record.donors,
        "pool.backup": None if record.backup is None else Path(record.backup),
        "libvirt.uri": record.libvirt_uri,
    }
    if record.tiering is not None:
        word = record.tiering.why.removeprefix("guest.tiering is ")
        values["guest.tiering"] = word if word in ("on", "off", *How) else "auto"
    plan = record.pager
    if plan is not None:
        values |= {
            "pool.extent": plan.extent_bytes,
            "pool.replicas": plan.replicas,
            "pool.allow_same_host": plan.allow_same_host,
            "pool.on_donor_loss": plan.on_donor_loss,
            "pool.rebuild_after": plan.rebuild_after_s,
            "pool.rebuild_rate": plan.rebuild_rate_bytes,
            "pool.slow": plan.slow_us / 1e6,
            "pager.readahead": plan.readahead_bytes,
            "pager.poll_us": plan.poll_us,
            "pager.log_level": plan.log_level,
        }
    return values


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value is None else str(value)
