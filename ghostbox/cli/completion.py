# SPDX-License-Identifier: MIT
"""Complete names in the shell: VMs, images, donors, keys. An error here must never disturb the user who types."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from ghostbox import config, paths
from ghostbox.config import definition
from ghostbox.donors import known as known_donors
from ghostbox.errors import GhostboxError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(find: Callable[[], Iterable[str]]) -> Complete:
    """Make a completion from what ``find`` returns; after an error it offers nothing."""

    @functools.wraps(find)
    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(word) for word in find() if word.startswith(incomplete)]
        except (GhostboxError, OSError):
            return []

    return complete


@_offering
def vms() -> Iterable[str]:
    """Return the names of all VMs."""
    return sorted(file.parent.name for file in (paths.find().state / "vms").glob("*/vm.json"))


@_offering
def images() -> Iterable[str]:
    """Return the names of all images, and of the image that `image build` makes without options."""
    return sorted({"debian", *(file.stem for file in paths.find().images.glob("*.json"))})


@_offering
def donors() -> Iterable[str]:
    """Return the donors of the configuration, and the names and addresses of those that this host knows."""
    known = known_donors.load(paths.find())
    names = [each.name for each in known if each.name and not each.name.startswith("-")]
    return dict.fromkeys([*config.load().pool.donors, *names, *(each.address for each in known)])


@_offering
def settings() -> Iterable[str]:
    """Return the words of `set`: names of VMs, and keys with an equals sign."""
    names = sorted(file.parent.name for file in (paths.find().state / "vms").glob("*/vm.json"))
    return [*names, *(f"{key}=" for key in definition.vm_keys())]


@_offering
def memservers() -> Iterable[str]:
    """Return the names of this machine's memservers, whether they run or not."""
    return sorted(file.parent.name for file in paths.find().memserver_state("*").parent.glob("*/identity.json"))


@_offering
def asking_hosts() -> Iterable[str]:
    """Return the names of hosts that ask donors of this machine to be paired."""
    return sorted({name for asking, _ in _hosts() for name in asking})


@_offering
def paired_hosts() -> Iterable[str]:
    """Return the names of hosts that are paired with donors of this machine."""
    return sorted({name for _, paired in _hosts() for name in paired})


def _hosts() -> list[tuple[set[str], set[str]]]:
    """Return, for each donor of this machine, the names of hosts that ask, and of those that are paired."""
    from ghostbox.memserver import requests
    from ghostbox.memserver.secure import CLIENTS

    found = []
    for file in paths.find().memserver_state("*").parent.glob(f"*/{CLIENTS}"):
        with contextlib.suppress(OSError):  # another memserver's file may still be readable
            found.append(requests.hosts_in(file))
    return found


@_offering
def ssh_hosts() -> Iterable[str]:
    """Return the hosts that the user's ssh configuration names; patterns are none."""
    file = Path.home() / ".ssh/config"
    lines = [line.split() for line in file.read_text(errors="replace").splitlines()]
    named = [word for words in lines if words and words[0].lower() == "host" for word in words[1:]]
    return sorted({word for word in named if not set("*?!") & set(word)})


@_offering
def keys() -> Iterable[str]:
    """Return the keys of a definition."""
    return list(definition.vm_keys())


_ARGUMENTS = {"name": vms, "address": donors, "addresses": donors, "names": donors, "words": vms}
_OWN: dict[tuple[str, ...], dict[str, Complete]] = {
    ("image", "delete"): {"name": images},
    ("set",): {"words": settings},
    **{("donor", word): {"target": ssh_hosts} for word in ("deploy", "undeploy")},
    **{("memserver", word): {"host": asking_hosts} for word in ("approve", "deny")},
    **{("memserver", word): {"host": paired_hosts} for word in ("suspend", "resume", "revoke")},
}
_OPTIONS = {"vm": vms, "image": images, "donors": donors, "removed": keys}


def attach(command: click.Command, words: tuple[str, ...]) -> None:
    """Let a command, and its subcommands, complete their arguments and options; ``words`` are the command's path."""
    of_memservers = words[:1] in (("memserver",), ("token",))
    own = {**({"name": memservers} if of_memservers else {}), **_OWN.get(words, {})}
    for parameter in command.params:
        table = _ARGUMENTS if isinstance(parameter, click.Argument) else _OPTIONS
        found = {**table, **own}.get(parameter.name or "")
        if found is not None and not getattr(parameter, "is_flag", False):
            parameter._custom_shell_complete = found  # click takes this only in constructors
    if isinstance(command, click.Group):
        for name, nested in command.commands.items():
            attach(nested, (*words, name))
