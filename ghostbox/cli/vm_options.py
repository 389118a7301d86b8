# SPDX-License-Identifier: MIT
"""The flags for what a VM is made of: one list for `up`, `set` and `plan`. Each stands for a key of its definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from ghostbox.config import definition

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--local", metavar="SIZE", help="RAM on this machine: memory and cache together."),
    click.option("--memory", metavar="SIZE", help="RAM on this machine for node 0."),
    click.option("--remote-memory", metavar="SIZE", help="RAM on the donors (node 1)."),
    click.option("--cache", metavar="SIZE", help="Local memory for the warm part of the remote memory."),
    click.option("--cpus", type=int, metavar="N", help="Virtual processors."),
    click.option("--disk", metavar="SIZE", help="Size of the disk."),
    click.option("--add-disk", "disks", multiple=True, metavar="SIZE", help="A further disk, at /mnt/disk2 and so on."),
    click.option("--share", "shares", multiple=True, metavar="DIR[:ro]", help="A directory of this host, at /mnt/DIR."),
    click.option("--image", metavar="NAME", help="Guest image; ours is built if it is missing."),
    click.option("--donor", "donors", multiple=True, metavar="HOST[:PORT]", help="A donor; may be given again."),
    click.option(
        "--replicas", type=int, metavar="N", help="Copies of the remote memory on different machines, 1 or 2."
    ),
    click.option("--allow-same-host", is_flag=True, default=None, help="Let both copies lie on one machine."),
    click.option("--backup", metavar="PATH", help="One more copy in a file on a local disk, written behind."),
    click.option(
        "--on-donor-loss", type=click.Choice(["wait", "pause", "poison"]), help="When no copy of a page can be read."
    ),
    click.option("--user", metavar="NAME", help="Login name in the guest."),
    click.option("--cloud-init", metavar="FILE", help="cloud-init user-data to merge with ours."),
    click.option("-p", "--port", "ports", multiple=True, metavar="HOST:GUEST", help="Forward a port of 127.0.0.1."),
    click.option("--network", metavar="NETWORK", help="user (default), bridge:NAME or libvirt:NAME."),
    click.option("--host-access/--no-host-access", default=None, help="Let the guest reach this host and the donors."),
    click.option("--autostart/--no-autostart", default=None, help="Start it when this machine starts."),
)


def vm_options(function: F) -> F:
    """Give a command all of these flags; it receives them under the names of their keys."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def by_key(flags: Mapping[str, object]) -> dict[str, object]:
    """Return flags by the dotted names of their keys: ``memory`` is ``vm.memory``, ``cache`` is ``pool.cache``."""
    return {full_key(flag): value for flag, value in flags.items()}


def full_key(word: str) -> str:
    """Return the dotted name of a key that may be given without its section; a word that is no key is itself."""
    names = (*definition.vm_keys(), definition.LOCAL)
    return {name.partition(".")[2]: name for name in names}.get(word, word)
