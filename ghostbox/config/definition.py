# SPDX-License-Identifier: MIT
"""Read and write the definition of a VM: the part of the configuration that is the VM's own, in its state directory.

Values for a VM come from, the strongest first:

    the command line   flags of this command, and the file that ``-c`` names; they change the definition
    the definition     the values when the VM was made, or what ``set`` and ``edit`` wrote
    defaults

The settings of this machine (environment, ./ghostbox.yaml, the user's file, the system's file) are used once: when the
VM is made, they go into the definition. So a later command from another directory starts the same VM.

A definition does not have ``vm.name``: the directory's name is the VM's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ghostbox.config import document
from ghostbox.config.load import from_settings, unknown_key
from ghostbox.config.rewrite import rewritten
from ghostbox.config.schema import LOCAL, Config, Key
from ghostbox.config.schema import keys as all_keys
from ghostbox.errors import ConfigError

__all__ = [
    "SECTIONS",
    "check_key",
    "combined",
    "frozen",
    "full_key",
    "lying_around",
    "new_text",
    "opening",
    "parse",
    "vm_keys",
]

SECTIONS = ("vm", "pool", "pager", "guest", "libvirt")
_NAME = "vm.name"
_ALWAYS = ("vm.memory", "vm.remote_memory", "vm.cpus", "vm.disk", "vm.image", "vm.user")
"""The keys that each definition has, also with a default's value: a later version's defaults must not change a VM."""


def vm_keys() -> Mapping[str, Key]:
    """Return every key that a definition may have, by its dotted name."""
    return {name: key for name, key in all_keys().items() if key.section in SECTIONS and name != _NAME}


def full_key(word: str) -> str:
    """Return the dotted name of a key that may lack its section; any other word is returned unchanged."""
    return {key.leaf: name for name, key in {**vm_keys(), LOCAL.name: LOCAL}.items()}.get(word, word)


def parse(text: str, place: Path | str, name: str, base: Path) -> Config:
    """Return the configuration that a definition's text makes over the defaults.

    Args:
        text: YAML.
        place: the file that errors and origins name.
        name: of the VM.
        base: the directory that relative paths are resolved against.

    Raises:
        ConfigError: the text is not YAML, a key cannot stand in a definition, or a value is out of range; the message
            names file and line.
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
        ConfigError: the key is ``vm.name``, belongs to a donor or to images, or does not exist; ``place`` is where it
            stands.
    """
    if name == LOCAL.name:
        raise ConfigError(
            f"{place}: {name} is not a part of a VM's definition, which has vm.memory and pool.cache",
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
    """Return the definition of a VM that is made from ``config``: plain data, by dotted key."""
    return {name: config.written(name) for name in vm_keys() if name in _ALWAYS or config.origin(name) != "default"}


def opening(name: str) -> str:
    """Return the comment at the beginning of a definition."""
    return (
        f"# What `ghostbox up {name}` starts. To change it: ghostbox set {name}, or ghostbox edit {name}.\n"
        f"# A key that is not here has its default: ghostbox config show --vm {name} --origin\n"
    )


def new_text(name: str, values: Mapping[str, Any]) -> str:
    """Return the text of a VM's first definition."""
    return rewritten(opening(name), values)


def combined(defined: Config, over: Config, names: Iterable[str]) -> Config:
    """Return ``defined`` with ``over``'s values of some keys, and of all keys that are not the VM's own."""
    taken = {name: over.value(name) for name in names}
    elsewhere = [name for name, key in all_keys().items() if key.section not in SECTIONS]
    taken.update({name: over.value(name) for name in elsewhere})
    return defined.replaced(taken, {name: over.origin(name) for name in taken})


def lying_around(config: Config, defined: Config) -> list[str]:
    """Return the keys that the environment or a file sets to another value than the definition."""
    return [
        name
        for name in vm_keys()
        if name not in config.given and config.origin(name) != "default" and config.value(name) != defined.value(name)
    ]
