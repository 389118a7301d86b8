# SPDX-License-Identifier: MIT
"""Change a VM's definition and its life: set, edit, start, stop, restart, rename, clone, autostart."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
from rich.console import RenderableType

from ghostbox import session
from ghostbox.cli import show
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import VM_NAME, name_argument, timeout_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.cli.vm import down
from ghostbox.cli.vm_options import vm_options
from ghostbox.config import document
from ghostbox.config.definition import full_key
from ghostbox.errors import GhostboxError, PoolDegraded, UsageError
from ghostbox.session import autostart as autostarting
from ghostbox.session import defining, lifecycle
from ghostbox.session.defining import Changed, Draft
from ghostbox.units import parse_duration


@click.command(
    "set",
    epilog="""\b
Examples:
  ghostbox set --memory 8G --cache 2G          change the only VM
  ghostbox set --local 6G                      RAM here in all; while the VM runs, its cache takes the change
  ghostbox set work pool.slow=20ms cpus=4      any key of a definition
  ghostbox set work --unset pool.cache         the default again
  ghostbox config show --vm work --origin      show the definition

A running VM takes at once what its pager can take (cache, readahead, rebuilding, the reaction to a donor's loss); the
rest applies at its next start.
""",
)
@click.argument("words", nargs=-1, metavar="[NAME] [KEY=VALUE]...")
@vm_options
@click.option("--unset", "removed", multiple=True, metavar="KEY", help="Use the default again; may be given again.")
@output_options
@click.pass_obj
def set_(context: Context, /, words: tuple[str, ...], removed: tuple[str, ...], output: str) -> None:
    """Change a VM's definition. Exit code 5 if the VM cannot take the change."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"one VM at a time, not {' '.join(names)}", hint="settings are KEY=VALUE")
    vm = chosen(context, names[0] if names else None)
    pairs = (word.partition("=") for word in words if "=" in word)
    settings = {full_key(key): document.scalar(value) for key, _, value in pairs}
    if not settings and not context.flags and not removed:
        hint = f"ghostbox config show --vm {vm} shows the definition, --help the options"
        raise UsageError("nothing to set", hint=hint)
    config = context.config({"vm.name": vm}, settings)
    found = defining.change(config, [full_key(key) for key in removed], context.paths, Stages())
    emit(found, output, lambda: _changed(found))


@click.command(
    epilog="""\b
Examples:
  ghostbox edit work                      use $VISUAL or $EDITOR
  ghostbox edit work --from work.yaml     take a file instead
"""
)
@name_argument
@click.option(
    "--from", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Take this file as it is."
)
@output_options
@click.pass_obj
def edit(context: Context, /, name: str | None, file: Path | None, output: str) -> None:
    """Edit a VM's definition as a file; the file is checked before it is taken."""
    vm, config, stages = chosen(context, name), context.config(), Stages()
    draft = defining.draft(vm, config, context.paths)
    if file is not None:
        draft.file.write_bytes(file.read_bytes())
    while True:
        try:
            if file is None:
                defining.run_editor(draft.file)
            found = defining.take(draft, config, context.paths, stages)
            break
        except GhostboxError as err:
            if file is None and _asks_to_edit_again(err):
                continue
            raise _kept(err, draft, given=file) from err
    draft.file.unlink(missing_ok=True)
    emit(found, output, lambda: _changed(found))


def _asks_to_edit_again(err: GhostboxError) -> bool:
    """Ask whether to edit again after an error; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    for word, text in (("error", err.message), ("why", err.why), ("fix", err.hint)):
        if text:
            Stages(quiet=False).note(f"{word}: {text}")
    return click.confirm("Edit it again?", default=True, err=True)


def _kept(err: GhostboxError, draft: Draft, *, given: Path | None) -> GhostboxError:
    """Return an error that also says where the edited copy is: the user's work is never thrown away."""
    unchanged = f"the definition of VM '{draft.name}' stays as it was"
    if given is not None:
        draft.file.unlink(missing_ok=True)
        return type(err)(err.message.replace(str(draft.file), str(given)), why=err.why or unchanged, hint=err.hint)
    return type(err)(
        err.message,
        why=f"{err.why}; {unchanged}" if err.why else unchanged,
        hint=f"{err.hint + '; ' if err.hint else ''}your copy is kept: ghostbox edit {draft.name} --from {draft.file}",
    )


def _changed(found: Changed) -> RenderableType:
    if not found.changes:
        return f"the definition of VM '{found.name}' says that already: nothing changes"
    return "\n".join(str(each) for each in found.changes)


_timeout = click.option("--timeout", metavar="TIME", help="How long to wait for SSH, then for cloud-init.")
_no_wait = click.option("--no-wait", is_flag=True, help="Return as soon as the VM runs.")
_overcommit = click.option("--overcommit", is_flag=True, help="Start even if this machine has too little memory.")
_stop_timeout = click.option(
    "--stop-timeout", default="2m", show_default=True, metavar="TIME", help="How long the guest may take to shut down."
)


@click.command(
    epilog="""\b
Examples:
  ghostbox start             start the only VM
  ghostbox start work --no-wait
"""
)
@name_argument
@_timeout
@_no_wait
@_overcommit
@output_options
@click.pass_obj
def start(
    context: Context, /, name: str | None, timeout: str | None, no_wait: bool, overcommit: bool, output: str
) -> None:
    """Start an existing VM as it is defined; `up` also makes VMs and changes them."""
    vm = chosen(context, name)
    session.Book(context.paths.vm(vm)).need(vm, context.paths)
    _start(context, vm, timeout, output, no_wait=no_wait, overcommit=overcommit)


@click.command(
    epilog="""\b
Examples:
  ghostbox restart             shut the VM down, then start it with its present definition
  ghostbox restart work --force --no-wait
"""
)
@name_argument
@click.option("--force", is_flag=True, help="End it at once; what the guest has not written is lost.")
@_stop_timeout
@_timeout
@_no_wait
@_overcommit
@output_options
@click.pass_obj
def restart(
    context: Context,
    /,
    *,
    name: str | None,
    force: bool,
    stop_timeout: str,
    timeout: str | None,
    no_wait: bool,
    overcommit: bool,
    output: str,
) -> None:
    """Shut a VM down and start it again; a stopped VM is only started."""
    vm = chosen(context, name)
    session.down(vm, context.paths, Stages(), force=force, timeout_s=parse_duration(stop_timeout))
    _start(context, vm, timeout, output, no_wait=no_wait, overcommit=overcommit)


def _start(context: Context, vm: str, timeout: str | None, output: str, *, no_wait: bool, overcommit: bool) -> None:
    timeout_s = None if timeout is None else parse_duration(timeout)
    config = context.config({"vm.name": vm})
    try:
        result = session.up(
            config, context.paths, Stages(), wait=not no_wait, timeout_s=timeout_s, overcommit=overcommit
        )
    except GhostboxError as err:
        if err.hint is not None and set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", err.hint)) - {"--overcommit"}:
            err.hint += f" (an option of `ghostbox set {vm}`)"
        raise
    emit(result, output, lambda: show.up_result(result))


stop = click.Command(
    "stop",
    params=list(down.params),
    callback=down.callback,
    help="Shut a VM down and give its memory back; the same as `ghostbox down`. The disk stays.",
    epilog="""\b
Examples:
  ghostbox stop                shut the VM down in order
  ghostbox stop work --force   end it at once
""",
)


@click.command(
    epilog="""\b
Examples:
  ghostbox rename work lab       the guest gets its new host name at its next start
"""
)
@click.argument("name", type=VM_NAME)
@click.argument("new", type=VM_NAME)
@output_options
@click.pass_obj
def rename(context: Context, /, name: str, new: str, output: str) -> None:
    """Give a stopped VM another name. Exit code 5 if the VM runs or the name is taken."""
    lifecycle.rename(name, new, context.paths)
    emit({"name": new, "was": name}, output, lambda: f"VM '{name}' is now '{new}'")


@click.command(
    epilog="""\b
Examples:
  ghostbox clone work lab        then: ghostbox start lab

The copy has the disks and the definition of its source, except forwarded ports and autostart, and an identity of its
own: MAC address, SSH keys, host name, machine id. The two share only the image: each can be changed and deleted
without the other. On a file system that can share blocks, the copy takes no space at first.
"""
)
@click.argument("name", type=VM_NAME)
@click.argument("new", type=VM_NAME)
@output_options
@click.pass_obj
def clone(context: Context, /, name: str, new: str, output: str) -> None:
    """Copy a stopped VM. Exit code 5 if the VM runs or the name is taken."""
    stages = Stages()
    found = lifecycle.clone(name, new, context.config(), context.paths, stages)
    for key, value in found.left_out.items():
        stages.note(f"note: {key} is left out, '{name}' has {value}; to set it: ghostbox set {new} {key}=…")
    emit(found, output, lambda: f"VM '{new}' is a copy of '{name}'. Start it: ghostbox start {new}")


@click.group(
    epilog="""\b
Examples:
  ghostbox autostart on work
  ghostbox autostart off
  ghostbox autostart run --timeout 10m
"""
)
def autostart() -> None:
    """Choose which VMs start with this machine, and start them."""


@autostart.command(
    epilog="""\b
Examples:
  ghostbox autostart on work
"""
)
@name_argument
@output_options
@click.pass_obj
def on(context: Context, /, name: str | None, output: str) -> None:
    """Let a VM start when this machine starts (vm.autostart)."""
    _set_autostart(context, name, output, wanted=True)


@autostart.command(
    epilog="""\b
Examples:
  ghostbox autostart off work
"""
)
@name_argument
@output_options
@click.pass_obj
def off(context: Context, /, name: str | None, output: str) -> None:
    """Leave a VM stopped when this machine starts."""
    _set_autostart(context, name, output, wanted=False)


def _set_autostart(context: Context, name: str | None, output: str, *, wanted: bool) -> None:
    config = context.config({"vm.name": chosen(context, name)}, {"vm.autostart": wanted})
    found = defining.change(config, (), context.paths, Stages())
    emit(found, output, lambda: _changed(found))


@autostart.command(
    epilog="""\b
Examples:
  ghostbox autostart run                   what the host service runs at boot
  ghostbox autostart run --timeout 2m --json
"""
)
@timeout_option("10m", "How long to wait for donors, network and libvirt, for all VMs together.")
@output_options
@click.pass_obj
def run(context: Context, /, timeout: float, output: str) -> None:
    """Start all VMs that start with this machine; wait for late donors. Exit code 6 if a VM does not run in the end."""
    found = autostarting.run(lambda name: context.config({"vm.name": name}), context.paths, Stages(), timeout_s=timeout)
    lines = [f"{each.name} {each.state or 'does not run'}" for each in found]
    emit(found, output, lambda: "\n".join(lines) or "no VM starts with this machine: ghostbox autostart on NAME")
    failed = [each for each in found if each.error is not None]
    if failed:
        raise PoolDegraded(
            f"{len(failed)} of {len(found)} VMs do not run",
            why="\n".join(f"{each.name}: {each.error}" for each in failed),
            hint="when the cause is mended: ghostbox autostart run",
        )
