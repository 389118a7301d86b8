# SPDX-License-Identifier: MIT
"""Merge the configuration: flags, environment, ./ghostbox.yaml or -c FILE, the user's file, the system's, defaults."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ghostbox.config import document
from ghostbox.config.kinds import SharedFolder
from ghostbox.config.schema import LOCAL, SECTIONS, Config, Key, keys, settable
from ghostbox.errors import ConfigError, NotFound, UsageError
from ghostbox.paths import user_config
from ghostbox.units import MEMORY_BLOCK_BYTES, exact_bytes, format_bytes

NOT_OFFERED: Mapping[str, tuple[str, str]] = {
    "pool.parity": (
        "there is no parity: it would be made anew for each page that is written back, and cost more than a second copy"
        " (measured: `ghostbox bench --only redundancy`)",
        "set pool.replicas: 2, or pool.backup with one donor only",
    )
}
"""Keys that a user may look for: why they do not exist, and what to use instead."""

_FLAG, _WORD = "flag", "command line"  # origins of values from the command line
_MEMORY, _CACHE = "vm.memory", "pool.cache"
# docs/tiering.md gives the reason for two fifths.
_CACHE_PART = 0.4
_LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Candidate:
    """Is a place where a configuration file is looked for."""

    role: str
    path: Path


@dataclass(frozen=True)
class _Setting:
    """Is a value that was given, before it is parsed. ``whole_bytes``: it is a part of `LOCAL`, which was split."""

    raw: object
    origin: str
    base: Path
    message_prefix: str
    whole_bytes: int | None = None


def file_candidates(file: Path | None = None) -> list[Candidate]:
    """Return where configuration files are looked for, the strongest first.

    ``GHOSTBOX_SYSTEM_CONFIG`` names another system file.
    """
    user = user_config()
    system = Path(os.environ.get("GHOSTBOX_SYSTEM_CONFIG", "/etc/ghostbox/config.yaml"))
    first = (
        Candidate("given", file) if file is not None else Candidate("project", _working_directory() / "ghostbox.yaml")
    )
    users_own = [] if user is None else [Candidate("user", user)]
    return [first, *users_own, Candidate("system", system)]


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as err:
        raise UsageError("the current directory is gone", hint="change to another directory: cd") from err


def load(
    cli: Mapping[str, object] | None = None,
    file: Path | None = None,
    *,
    words: Mapping[str, object] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration for this command.

    Args:
        cli: values of flags, by dotted key; None and empty lists count as not given.
        file: the file of ``-c``; None looks for ``./ghostbox.yaml``.
        words: values of ``KEY=VALUE`` words, by dotted key: these are the strongest, and null counts.
        variables: the environment variables that flags of ``cli`` came from, by dotted key; such values do not count as
            given on the command line.

    Raises:
        ConfigError: a key is unknown, or a value has a wrong type or is out of range; the message names file and line.
        NotFound: ``file`` does not exist.
    """
    if file is not None and not document.is_there(file):
        raise NotFound(f"no configuration file {file}")
    settings: dict[str, _Setting] = {}
    for candidate in reversed(file_candidates(file)):
        if document.is_there(candidate.path):
            settings.update(_from_file(candidate.path))
    settings.update(_from_environment(os.environ))
    # vm.local of one place is split with memory and cache of that place, so that those of a stronger place win.
    from_variables = {name: raw for name, raw in (cli or {}).items() if name in (variables or {})}
    typed = {name: raw for name, raw in (cli or {}).items() if name not in from_variables}
    settings.update(_from_flags(from_variables, variables or {}))
    flags = _from_flags(typed, {}) | _from_words(words or {})
    settings.update(flags)
    given = {name for name, each in flags.items() if each.origin in (_FLAG, _WORD)}
    given.update(() if file is None else _from_file(file))
    return dataclasses.replace(_build(settings), given=frozenset(given), local_bytes=_given_local(settings, given))


def _given_local(settings: Mapping[str, _Setting], given: Collection[str]) -> int | None:
    """Return `LOCAL` if the command line gave it, and neither of its parts."""
    wholes = {settings[name].whole_bytes if name in given else None for name in (_MEMORY, _CACHE)}
    return wholes.pop() if len(wholes) == 1 else None


def validate_file(path: Path) -> Config:
    """Return the configuration of the file ``path`` alone, over the defaults.

    Raises:
        ConfigError: see `load`.
        NotFound: the file does not exist.
    """
    if not document.is_there(path):
        raise NotFound(f"no configuration file {path}")
    return _build(_from_file(path))


def with_origins(config: Config, origins: Mapping[str, str]) -> Config:
    """Return ``config`` with better known origins of some values, which then do not count as given."""
    given = config.given - origins.keys()
    return dataclasses.replace(config, origins={**config.origins, **origins}, given=given)


def from_settings(values: Mapping[str, tuple[object, str]], base: Path) -> Config:
    """Return the defaults with these values on top; ``values`` has a value and its place, by dotted key.

    Relative paths are resolved against ``base``.

    Raises:
        ConfigError: a key is unknown, or a value has a wrong type or is out of range; the message begins with its
            place.
    """
    settings: dict[str, _Setting] = {}
    for name, (raw, place) in values.items():
        if name not in settable():
            raise unknown_key(name, place)
        settings[name] = _Setting(raw, place, base, f"{place}: {name}")
    return _build(_split_local(settings))


def _from_file(path: Path) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for entry in document.read(path):
        place = f"{path}:{entry.line}"
        if entry.name not in settable():
            raise unknown_key(entry.name, place)
        found[entry.name] = _Setting(entry.value, place, path.parent, f"{place}: {entry.name}")
    return _split_local(found)


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for name, variable in ((name, key.env) for name, key in settable().items()):
        if variable in environ:
            raw = environ[variable] or None
            found[name] = _Setting(raw, f"environment {variable}", _working_directory(), variable)
    return _split_local(found)


def _from_flags(cli: Mapping[str, object], variables: Mapping[str, str]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for name, raw in cli.items():
        if name not in settable():
            raise unknown_key(name, _FLAG)
        if raw not in (None, (), []):
            origin = f"environment {variables[name]}" if name in variables else _FLAG
            found[name] = _Setting(raw, origin, _working_directory(), variables.get(name, settable()[name].spelling))
    return _split_local(found)


def _from_words(words: Mapping[str, object]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for name, raw in words.items():
        if name not in settable():
            raise unknown_key(name, _WORD)
        found[name] = _Setting(raw, _WORD, _working_directory(), name)
    return _split_local(found)


def split_local(local_bytes: int) -> tuple[int, int]:
    """Return the sizes of memory and cache, in bytes, into which ``vm.local`` is split if neither is given."""
    blocks = max(round(local_bytes * (1 - _CACHE_PART) / MEMORY_BLOCK_BYTES), _LEAST_BLOCKS)
    return blocks * MEMORY_BLOCK_BYTES, local_bytes - blocks * MEMORY_BLOCK_BYTES


def _split_local(found: dict[str, _Setting]) -> dict[str, _Setting]:
    """Replace `LOCAL` by memory and cache, as far as these are not given themselves.

    Raises:
        ConfigError: memory and cache are both given besides, or one of them leaves nothing for the other.
    """
    setting = found.get(LOCAL.name)
    if setting is None:
        return found
    rest = {name: each for name, each in found.items() if name != LOCAL.name}
    local = cast(int, _parse(LOCAL, setting))
    given = {name: cast(int, _parse(keys()[name], rest[name])) for name in (_MEMORY, _CACHE) if name in rest}
    if len(given) == 2:
        raise ConfigError(
            f"{setting.message_prefix}: vm.memory and pool.cache are given, too, and mean the same memory",
            hint="leave one of the three out",
        )
    if any(size >= local for size in given.values()):
        (name,) = given
        raise ConfigError(
            f"{setting.message_prefix}: {name} ({format_bytes(given[name])}) is not smaller than all local memory"
            f" ({format_bytes(local)})",
            hint=f"raise {LOCAL.name}, or leave {name} out",
        )
    memory = local - given[_CACHE] if _CACHE in given else given.get(_MEMORY, split_local(local)[0])
    for name, size in ((_MEMORY, memory), (_CACHE, local - memory)):
        rest[name] = dataclasses.replace(setting, raw=exact_bytes(size), whole_bytes=None if given else local)
    return rest


def unknown_key(name: str, place: str) -> ConfigError:
    """Return the error for a key that does not exist: where it stands, and which key may be meant."""
    if name in NOT_OFFERED:
        why, hint = NOT_OFFERED[name]
        return ConfigError(f"{place}: unknown key '{name}'", why=why, hint=hint)
    section = name.partition(".")[0]
    if section not in SECTIONS:
        near = difflib.get_close_matches(section, SECTIONS, n=1)
        what, known = f"unknown section '{section}'", "sections are " + ", ".join(SECTIONS)
    else:
        near = _closest_key(name, section)
        what = f"unknown key '{name}'"
        known = f"keys of {section} are " + ", ".join(
            key.name.partition(".")[2] for key in keys().values() if key.section == section
        )
    return ConfigError(f"{place}: {what}", hint=f"did you mean '{near[0]}'?" if near else known)


def _closest_key(name: str, section: str) -> list[str]:
    """Return at most one key like ``name``; the same leaf elsewhere first: ``vm.cache`` means ``pool.cache``."""
    leaf = name.partition(".")[2]
    elsewhere = [other for other in keys() if other.partition(".")[2] == leaf]
    own = [other for other in keys() if other.startswith(section + ".")]
    return elsewhere[:1] or difflib.get_close_matches(name, own, n=1) or difflib.get_close_matches(name, keys(), n=1)


def _build(settings: Mapping[str, _Setting]) -> Config:
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    origins: dict[str, str] = {}
    for name, key in keys().items():
        setting = settings.get(name)
        origins[name] = setting.origin if setting else "default"
        sections[key.section][key.attribute] = _parse(key, setting)
    built = {section: SECTIONS[section](**values) for section, values in sections.items()}
    return Config(**built, origins=origins)


def _parse(key: Key, setting: _Setting | None) -> object:
    if setting is None:
        return key.kind.parse(key.default)
    try:
        value = key.kind.parse(setting.raw)
    except UsageError as err:
        raise ConfigError(f"{setting.message_prefix}: {err.message}", hint=err.hint or _meaning([key])) from err
    return _absolute(value, setting.base)


def _absolute(value: object, base: Path) -> object:
    """Resolve relative paths against the place where they are written."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, SharedFolder):
        return value.below(base)
    return tuple(_absolute(item, base) for item in value) if isinstance(value, tuple) else value


def _meaning(found: Iterable[Key]) -> str:
    return "; ".join(f"{key.name}: {key.doc}" for key in found)
