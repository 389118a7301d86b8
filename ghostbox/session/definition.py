# SPDX-License-Identifier: MIT
"""Read and change a VM's definition on disk (`config.definition` has the rules).

A VM that an earlier version made has a record and no definition. Its definition is made from its record; what a record
does not say (the SSH key, the cloud-init file) comes from the configuration of the first command.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox.config import Config, ExtraDisk, PortForward, definition, from_settings
from ghostbox.config.kinds import Network, Share
from ghostbox.config.rewrite import rewritten
from ghostbox.config.schema import LEAST_CACHE_BYTES
from ghostbox.config.tiering import How
from ghostbox.errors import GhostboxError, Refused, hint_for
from ghostbox.paths import Paths, VmPaths, make_directory
from ghostbox.session.record import Book, Record, VmState
from ghostbox.system import state_files
from ghostbox.units import PAGE_BYTES, exact_bytes, format_bytes


@dataclass(frozen=True)
class Change:
    """Describes a key that gets another value; ``before`` and ``after`` are as people write them."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Return the change as a sentence."""
        return f"{self.key} is now {_shown(self.after)}, it was {_shown(self.before)}"


@dataclass(frozen=True)
class Defined:
    """Holds a VM's definition with a command's changes; it is not written yet.

    ``text`` is the file's new text; ``ignored`` are notes on settings of this machine that do not apply to the VM.
    """

    config: Config
    text: str
    changes: tuple[Change, ...] = ()
    ignored: tuple[str, ...] = ()


def settle(book: Book, config: Config, removed: Collection[str] = ()) -> Defined:
    """Return a VM's new definition: an existing VM takes the command line's values of ``config``, a new VM takes all.

    Node 0 of a running VM cannot change, so of a new ``vm.local`` its cache takes what node 0 leaves.

    Args:
        book: the VM's record, loaded.
        config: the configuration of the command.
        removed: keys to take out of the definition.

    Raises:
        ConfigError: the definition on disk is wrong, or a key in ``removed`` cannot stand in a definition.
        Refused: this VM cannot take the change.
    """
    if book.found is None:
        return Defined(config, definition.new_text(config.vm.name, definition.frozen(config)))
    for name in removed:
        definition.check_key(name, "--unset")
    text = text_of(book.files, book.record, config)
    before = parse(book.files, text)
    if config.local_bytes is not None and book.record.state is not VmState.STOPPED:
        config = _around_node0(book.record, before, config, config.local_bytes)
    names = [name for name in definition.vm_keys() if name in config.given and name not in removed]
    names = [name for name in names if config.value(name) != before.value(name) or before.origin(name) == "default"]
    if names or removed:
        text = rewritten(text, {name: config.written(name) for name in names}, sorted(removed))
    found = compare(book.record, before, parse(book.files, text), text)
    after = definition.combined(found.config, config, names)
    return Defined(after, text, found.changes, _ignored(config, after, book.record.name))


def compare(record: Record, before: Config, after: Config, text: str) -> Defined:
    """Return the definition ``after`` with its changes from ``before``.

    Raises:
        Refused: this VM cannot take the change.
    """
    changes = tuple(
        Change(name, before.written(name), after.written(name))
        for name in definition.vm_keys()
        if before.value(name) != after.value(name)
    )
    _check(record, after)
    return Defined(after, text, changes)


def defined(name: str, paths: Paths, config: Config) -> Config:
    """Return the configuration of an existing VM; ``config`` gives what is not the VM's own. This changes nothing.

    Raises:
        NotFound: no VM has this name.
        ConfigError: the definition on disk is wrong.
    """
    book = Book(paths.vm(name))
    text = text_of(book.files, book.need(name, paths), config)
    return definition.combined(parse(book.files, text), config, ())


def text_of(files: VmPaths, record: Record, config: Config) -> str:
    """Return the definition's text: the file's, or one that is made from the record.

    Raises:
        GhostboxError: the file cannot be read.
    """
    try:
        return files.definition.read_text(encoding="utf-8")
    except FileNotFoundError:
        return definition.new_text(record.name, definition.frozen(_from_record(record, config)))
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise GhostboxError(f"cannot read the definition of VM '{record.name}', {files.definition}: {reason}") from err


def parse(files: VmPaths, text: str) -> Config:
    """Return the configuration in a definition's text.

    Raises:
        ConfigError: the text is wrong; the message names file and line.
    """
    return definition.parse(text, files.definition, files.state.name, files.state)


def keep(files: VmPaths, text: str) -> None:
    """Write the definition in one step, durably.

    Raises:
        GhostboxError: the file cannot be written; the former definition stays.
    """
    make_directory(files.state)
    try:
        state_files.replace(files.definition, text.encode())
    except OSError as err:
        raise GhostboxError(f"cannot write {files.definition}: {err.strerror}", hint=hint_for(err)) from err


def add_donor(book: Book, address: str, known_as: Collection[str] = ()) -> None:
    """Add a donor to a definition that names its donors, so that the VM's next start uses the donor, too.

    ``known_as`` are names of the donor, one of which may stand in the definition already.

    Raises:
        ConfigError: the definition on disk is wrong.
        GhostboxError: the definition cannot be written.
    """
    if not book.files.definition.exists() or book.found is None:
        return
    text = book.files.definition.read_text(encoding="utf-8")
    named = parse(book.files, text).pool.donors
    if named and not {address, *known_as} & set(named):
        keep(book.files, rewritten(text, {"pool.donors": [*named, address]}))


def _check(record: Record, after: Config) -> None:
    """Refuse changes that would cost the data on an existing VM's disks."""
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


def _around_node0(record: Record, before: Config, config: Config, local_bytes: int) -> Config:
    """Return ``config`` with the memory that a running VM has, and with the rest of ``vm.local`` as its cache.

    If the definition has another memory for the next start, the larger of the two counts.

    Raises:
        Refused: there is no rest, or too little for a cache.
    """
    memory_bytes = max(before.vm.memory_bytes, record.memory_bytes)
    cache_bytes = (local_bytes - memory_bytes) // PAGE_BYTES * PAGE_BYTES
    least_bytes = memory_bytes + LEAST_CACHE_BYTES
    if local_bytes < least_bytes:
        raise Refused(
            f"vm.local ({format_bytes(local_bytes)}) leaves no cache beside the memory of VM '{record.name}'"
            f" ({format_bytes(memory_bytes)}), which runs",
            why="memory changes only at a start, so until then the cache takes the whole change",
            hint=f"give {exact_bytes(least_bytes)} or more, or stop the VM first: ghostbox down {record.name}",
        )
    memory = {"vm.memory": before.vm.memory_bytes, "pool.cache": cache_bytes}
    return config.replaced(memory, {name: config.origin(name) for name in memory})


def _ignored(config: Config, defined: Config, name: str) -> tuple[str, ...]:
    keys = definition.lying_around(config, defined)
    if not keys:
        return ()
    places = ", ".join(dict.fromkeys(config.origin(key) for key in keys))
    return (
        f"note: VM '{name}' stays as it is defined; other values for {', '.join(keys)} do not apply to it: {places}",
        f"      to see its definition: ghostbox config show --vm {name} --origin; to change it: ghostbox set {name}",
    )


def _from_record(record: Record, config: Config) -> Config:
    """Return the configuration of a VM that an earlier version made without a definition."""
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
        "pool.insecure": record.insecure,
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
