# SPDX-License-Identifier: MIT
"""The definition of a VM: the part of the configuration that is the VM's own, a YAML file in its state directory.

What counts for a VM, the strongest first:

    the command line   flags of this command, and the file that ``-c`` names; they change the definition
    the definition     what the VM was made with, or what ``set`` and ``edit`` wrote
    defaults

What lies around (environment, ./ghostbox.yaml, the user's file, the system's file) counts once: when the VM is made,
its values go into the definition. So a later command from another directory starts the same VM.

``vm.name`` is not in a definition: the directory says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ghostbox.config import document
from ghostbox.config.load import LOCAL, from_settings, unknown_key
from ghostbox.config.rewrite import rewritten
from ghostbox.config.schema import Config, Key
from ghostbox.config.schema import keys as all_keys
from ghostbox.errors import ConfigError

__all__ = [
    "LOCAL",
    "SECTIONS",
    "check_key",
    "combined",
    "frozen",
    "lying_around",
    "new_text",
    "opening",
    "parse",
    "vm_keys",
]

SECTIONS = ("vm", "pool", "pager", "guest", "libvirt")
_NAME = "vm.name"
_ALWAYS = ("vm.memory", "vm.remote_memory", "vm.cpus", "vm.disk", "vm.image", "vm.user")
"""The VM's hardware is written down even where it is the default: the defaults of a later version change nothing."""


def vm_keys() -> Mapping[str, Key]:
    """Return every key that a definition may have, by its dotted name."""
    return {name: key for name, key in all_keys().items() if key.section in SECTIONS and name != _NAME}


def parse(text: str, place: Path | str, name: str, base: Path) -> Config:
    """Return the configuration that a definition's text makes over the defaults.

    Args:
        text: YAML.
        place: the file that errors and origins name.
        name: of the VM.
        base: the directory that relative paths are resolved against.

    Raises:
        ConfigError: not YAML, a key that a definition has not, a value out of range; the message names file and line.
    """
    settings: dict[str, tuple[object, str]] = {}
    for entry in document.parse(text, place):
        at = f"{place}:{entry.line}"
        check_key(entry.name, at)
        settings[entry.name] = (entry.value, at)
    return from_settings(settings, base).replaced({_NAME: name}, {_NAME: "definition"})


def check_key(name: str, place: str) -> None:
    """Refuse a key that is not the VM's own.

    Raises:
        ConfigError: ``vm.name``, a key of a donor or of images, or one that does not exist; ``place`` is where it is.
    """
    if name == LOCAL:
        raise ConfigError(
            f"{place}: {LOCAL} is not a part of a VM's definition, which has vm.memory and pool.cache",
            hint="to have both written: ghostbox set --local SIZE",
        )
    if name not in all_keys():
        raise unknown_key(name, place)
    if name == _NAME:
        raise ConfigError(
            f"{place}: vm.name is not a part of a VM's definition", hint="to give it another name: ghostbox rename"
        )
    if name not in vm_keys():
        section = name.partition(".")[0]
        raise ConfigError(
            f"{place}: '{name}' is not a part of a VM's definition",
            why=f"the section {section} says nothing of a VM",
            hint="it goes into the configuration: ghostbox config path",
        )


def frozen(config: Config) -> dict[str, Any]:
    """Return what the definition of a VM that is made from ``config`` says: as plain data, by dotted key."""
    return {name: config.written(name) for name in vm_keys() if name in _ALWAYS or config.origin(name) != "default"}


def opening(name: str) -> str:
    """Return the comment that a definition begins with."""
    return (
        f"# What `ghostbox up {name}` starts. To change it: ghostbox set {name}, or ghostbox edit {name}.\n"
        f"# A key that is not here has its default: ghostbox config show --vm {name} --origin\n"
    )


def new_text(name: str, values: Mapping[str, Any]) -> str:
    """Return the text of a VM's first definition."""
    return rewritten(opening(name), values)


def combined(defined: Config, over: Config, names: Iterable[str]) -> Config:
    """Return ``defined`` with the values that ``over`` has for some keys, and with all that is not the VM's own."""
    taken = {name: over.value(name) for name in names}
    elsewhere = [name for name, key in all_keys().items() if key.section not in SECTIONS]
    taken.update({name: over.value(name) for name in elsewhere})
    return defined.replaced(taken, {name: over.origin(name) for name in taken})


def lying_around(config: Config, defined: Config) -> list[str]:
    """Return the keys that the environment or a file sets otherwise than a definition does."""
    return [
        name
        for name in vm_keys()
        if name not in config.given and config.origin(name) != "default" and config.value(name) != defined.value(name)
    ]
