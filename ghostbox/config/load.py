# SPDX-License-Identifier: MIT
"""Puts the configuration together: flags, environment, ./ghostbox.yaml or -c FILE, user, system, defaults."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ghostbox.config import document, kinds
from ghostbox.config.kinds import SharedFolder
from ghostbox.config.schema import SECTIONS, Config, Key, keys
from ghostbox.errors import ConfigError, NotFound, UsageError
from ghostbox.paths import user_config
from ghostbox.units import MEMORY_BLOCK_BYTES, MIB, exact_bytes, format_bytes

NOT_OFFERED: Mapping[str, tuple[str, str]] = {
    "pool.parity": (
        "there is no parity: made new with each page that is written back, it costs more than a second copy does"
        " (measured: `ghostbox bench --only redundancy`)",
        "set pool.replicas: 2, or pool.backup with one donor only",
    )
}
"""Keys that one might look for: why there is no such thing, and what to take instead."""

LOCAL = "vm.local"
"""A short way to write ``vm.memory`` and ``pool.cache``: both together are what a VM has of this machine's RAM."""

_LOCAL_KIND = kinds.Size(384 * MIB)
_MEMORY, _CACHE = "vm.memory", "pool.cache"
# ARCHITECTURE.md, "Hot pages come home".
_CACHE_PART = 0.4
_LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Candidate:
    """A place where a configuration file is looked for."""

    role: str
    path: Path


@dataclass(frozen=True)
class _Setting:
    """A value somebody gave, before it is parsed."""

    raw: object
    origin: str
    base: Path
    message_prefix: str


def file_candidates(file: Path | None = None) -> list[Candidate]:
    """Return where configuration is looked for, the strongest first.

    ``GHOSTBOX_SYSTEM_CONFIG`` moves the system file.
    """
    user = user_config()
    system = Path(os.environ.get("GHOSTBOX_SYSTEM_CONFIG", "/etc/ghostbox/config.yaml"))
    first = Candidate("given", file) if file is not None else Candidate("project", _here() / "ghostbox.yaml")
    users_own = [] if user is None else [Candidate("user", user)]
    return [first, *users_own, Candidate("system", system)]


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as err:
        raise UsageError("the current directory is not there any more", hint="go to another one: cd") from err


def load(
    cli: Mapping[str, object] | None = None,
    file: Path | None = None,
    *,
    words: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration that holds for this command.

    Args:
        cli: dotted key to what a flag gave; None and empty lists count as not given.
        file: the file of ``-c``; None looks for ``./ghostbox.yaml``.
        words: dotted key to value where the command line has them as such: they are the strongest, null counts.
        labels: what the flags of ``cli`` are called, where that is not the key's own name.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range; the message names file and line.
        NotFound: ``file`` does not exist.
    """
    if file is not None and not document.is_there(file):
        raise NotFound(f"no configuration file {file}")
    settings: dict[str, _Setting] = {}
    for candidate in reversed(file_candidates(file)):
        if document.is_there(candidate.path):
            settings.update(_from_file(candidate.path))
    settings.update(_from_environment(os.environ))
    flags = _from_flags(cli or {}, labels or {}) | _from_words(words or {})
    settings.update(flags)
    given = {*flags, *(() if file is None else _from_file(file))}
    return dataclasses.replace(_build(settings), given=frozenset(given))


def validate_file(path: Path) -> Config:
    """Return what ``path`` alone says over the defaults.

    Raises:
        ConfigError: see `load`.
        NotFound: no such file.
    """
    if not document.is_there(path):
        raise NotFound(f"no configuration file {path}")
    return _build(_from_file(path))


def with_origins(config: Config, origins: Mapping[str, str]) -> Config:
    """Return ``config`` with better knowledge of where some values came from; those count as lying around."""
    given = config.given - origins.keys()
    return dataclasses.replace(config, origins={**config.origins, **origins}, given=given)


def from_settings(values: Mapping[str, tuple[object, str]], base: Path) -> Config:
    """Return the defaults with these values on top: what somebody wrote and where, by dotted key.

    ``base`` is what relative paths are resolved against.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range; the message begins with where it stands.
    """
    settings: dict[str, _Setting] = {}
    for name, (raw, place) in values.items():
        if not _is_known(name):
            raise unknown_key(name, place)
        settings[name] = _Setting(raw, place, base, f"{place}: {name}")
    return _build(_split_local(settings))


def _from_file(path: Path) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for entry in document.read(path):
        place = f"{path}:{entry.line}"
        if not _is_known(entry.name):
            raise unknown_key(entry.name, place)
        found[entry.name] = _Setting(entry.value, place, path.parent, f"{place}: {entry.name}")
    return _split_local(found)


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for name, variable in ((name, key.env) for name, key in (*keys().items(), (LOCAL, _LOCAL_KEY))):
        if variable in environ:
            raw = environ[variable] or None
            found[name] = _Setting(raw, f"environment {variable}", _here(), variable)
    return _split_local(found)


def _from_flags(cli: Mapping[str, object], labels: Mapping[str, str]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for name, raw in cli.items():
        if not _is_known(name):
            raise unknown_key(name, "flag")
        if raw not in (None, (), []):
            flag = labels.get(name, "--" + name.partition(".")[2].replace("_", "-"))
            found[name] = _Setting(raw, "flag", _here(), flag)
    return _split_local(found)


def _from_words(words: Mapping[str, object]) -> dict[str, _Setting]:
    found: dict[str, _Setting] = {}
    for name, raw in words.items():
        if not _is_known(name):
            raise unknown_key(name, "command line")
        found[name] = _Setting(raw, "command line", _here(), name)
    return _split_local(found)


def _is_known(name: str) -> bool:
    return name == LOCAL or name in keys()


def _split_local(found: dict[str, _Setting]) -> dict[str, _Setting]:
    """Put memory and cache in place of `LOCAL`, as whoever wrote it leaves them open.

    Raises:
        ConfigError: both are given beside it, or one of them leaves nothing for the other.
    """
    setting = found.get(LOCAL)
    if setting is None:
        return found
    rest = {name: each for name, each in found.items() if name != LOCAL}
    local = cast(int, _parse(_LOCAL_KEY, setting))
    given = {name: cast(int, _parse(keys()[name], rest[name])) for name in (_MEMORY, _CACHE) if name in rest}
    if len(given) == 2:
        raise ConfigError(
            f"{setting.message_prefix}: vm.memory and pool.cache are given, too, and say the same",
            hint="leave one of the three out",
        )
    if any(size >= local for size in given.values()):
        (name,) = given
        raise ConfigError(
            f"{setting.message_prefix}: {name} ({format_bytes(given[name])}) is not smaller than all local memory"
            f" ({format_bytes(local)})",
            hint=f"raise {LOCAL}, or leave {name} out",
        )
    if _CACHE in given:
        memory = local - given[_CACHE]
    else:
        blocks = max(round(local * (1 - _CACHE_PART) / MEMORY_BLOCK_BYTES), _LEAST_BLOCKS)
        memory = given.get(_MEMORY, blocks * MEMORY_BLOCK_BYTES)
    for name, size in ((_MEMORY, memory), (_CACHE, local - memory)):
        rest[name] = dataclasses.replace(setting, raw=exact_bytes(size))
    return rest


def unknown_key(name: str, place: str) -> ConfigError:
    """Return the error for a key that does not exist: where it is, and what may be meant."""
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
    """Return at most one key like ``name``, from its own section first: ``vm.cache`` means ``pool.cache``."""
    leaf = name.partition(".")[2]
    elsewhere = [other for other in keys() if other.partition(".")[2] == leaf]
    own = [other for other in keys() if other.startswith(section + ".")]
    return elsewhere[:1] or difflib.get_close_matches(name, own, n=1) or difflib.get_close_matches(name, keys(), n=1)


_LOCAL_KEY = Key(LOCAL, "vm", "local_bytes", _LOCAL_KIND, None, "RAM on this machine for memory and cache together")


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
    """Take relative paths from where they were written."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, SharedFolder):
        return value.below(base)
    return tuple(_absolute(item, base) for item in value) if isinstance(value, tuple) else value


def _meaning(found: Iterable[Key]) -> str:
    return "; ".join(f"{key.name}: {key.doc}" for key in found)
