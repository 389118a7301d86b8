# SPDX-License-Identifier: MIT
"""Make another machine a donor by ssh, and undo that (``ghostbox donor deploy``, ``ghostbox donor undeploy``)."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ghostbox.cli.context import Context
from ghostbox.cli.memserver import memserver
from ghostbox.cli.options import confirm, yes_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.deploy import deploying, undeploying
from ghostbox.deploy.deploying import Deployed, Wanted
from ghostbox.deploy.donor_side import Ask
from ghostbox.deploy.undeploying import Undeployed
from ghostbox.errors import UsageError
from ghostbox.session.signals import Interrupts
from ghostbox.units import format_bytes

_TARGET = click.argument("target", metavar="[USER@]HOST")
_USER = click.option("--user", is_flag=True, help="Use the login's home directory and no sudo.")
_SSH_CONFIG = click.option(
    "--ssh-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What ssh reads instead of your own configuration.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Look, print what would be changed, and stop.")


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  ghostbox donor deploy root@tower                      lend what tower can spare
  ghostbox donor deploy ana@tower --dry-run             print what would be changed there
  ghostbox donor deploy ana@tower -- --size 24G         with options of `ghostbox memserver`
  ghostbox donor deploy ana@tower --user                into ana's home directory, without sudo

It uses your own ssh. What tower needs comes from this host: programs, Python packages, libraries; it has to have
Python 3.11 and glibc, no internet. It is installed into /opt/ghostbox and started by systemd, if that runs there. Then
this host is paired with it. Deploying again brings this host's version and keeps the leases, and the former options
unless new ones are given.
""",
)
@_TARGET
@_USER
@_SSH_CONFIG
@_DRY_RUN
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF MEMSERVER]...")
@output_options
@click.pass_obj
def deploy(
    context: Context, /, target: str, user: bool, ssh_config: Path | None, dry_run: bool, options: tuple[str, ...],
    output: str,
) -> None:  # fmt: skip
    """Make another machine a donor of this host, by ssh. Run again, it upgrades the donor."""
    name = _checked(context, options)
    stages = Stages()
    wanted = Wanted(target, _without_name(options) or None, name, user, ssh_config)

    def show(changes: tuple[str, ...]) -> None:
        for change in changes if not dry_run else ():
            stages.note(f"will {change}")

    with Interrupts().watched():
        done = deploying.deploy(wanted, context.paths, stages, ask=_ask(), show=show, dry_run=dry_run)
    emit(done, output, lambda: _deployed(done))
    for note in done.notes:
        stages.note(note)


def _checked(context: Context, options: tuple[str, ...]) -> str | None:
    """Check the memserver's options; return the name that they give it."""
    if any("\n" in word for word in options):
        raise UsageError("an option of the memserver has a line break in it", hint="leave it out")
    memserver.make_context("memserver", list(options), parent=click.get_current_context())
    settings = context.config().memserver
    given = context.flags
    if given.get("memserver.insecure"):
        raise UsageError(
            "a deployed donor is paired with this host: --insecure contradicts that", hint="leave --insecure out"
        )
    return settings.name if "memserver.name" in given else None


def _without_name(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options without ``--name``, which is kept apart from them."""
    words = iter(options)
    kept = []
    for word in words:
        if word == "--name":
            next(words, None)
        elif not word.startswith("--name="):
            kept.append(word)
    return tuple(kept)


def _ask() -> Ask | None:
    """Return what asks for a password; None without a terminal to ask on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: str(click.prompt(question, hide_input=True, err=True))


def _deployed(done: Deployed) -> str:
    if not done.address:
        return "\n".join((f"would change on {done.target}:", *(f"  {change}" for change in done.changes)))
    lends = f"lends {format_bytes(done.size_bytes)} at {done.address}"
    return f"donor '{done.donor}' on {done.target} {lends}, over TLS; `ghostbox up` uses it"


@click.command(
    epilog="""\b
Examples:
  ghostbox donor undeploy root@tower
  ghostbox donor undeploy ana@tower --dry-run

It is refused while a host holds memory there.
"""
)
@_TARGET
@_USER
@_SSH_CONFIG
@_DRY_RUN
@yes_option
@output_options
@click.pass_obj
def undeploy(
    context: Context, /, target: str, user: bool, ssh_config: Path | None, dry_run: bool, yes: bool, output: str
) -> None:
    """Remove a deployed donor from its machine, with all that it has there."""
    stages = Stages()

    def agree(changes: tuple[str, ...]) -> None:
        for change in changes:
            stages.note(f"will {change}")
        confirm(f"Remove the donor on {target}?", yes=yes)

    with Interrupts().watched():
        done = undeploying.undeploy(
            target, context.paths, stages, user=user, ssh_config=ssh_config, ask=_ask(), agree=agree, dry_run=dry_run
        )
    emit(done, output, lambda: _undeployed(done))


def _undeployed(done: Undeployed) -> str:
    if not done.removed:
        return "\n".join((f"would change on {done.target}:", *(f"  {change}" for change in done.changes)))
    return f"donor '{done.donor}' is removed from {done.target}, with {done.place}"
