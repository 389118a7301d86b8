# SPDX-License-Identifier: MIT
"""The commands for what a VM is: set, edit."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import RenderableType

from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import name_argument
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.cli.vm_options import by_key, full_key, vm_options
from ghostbox.config import document
from ghostbox.errors import GhostboxError, UsageError
from ghostbox.session import defining
from ghostbox.session.defining import Changed, Draft


@click.command(
    "set",
    epilog="""\b
Examples:
  ghostbox set --memory 8G --cache 2G          of the only VM there is
  ghostbox set work pool.slow=20ms cpus=4      any key of the configuration
  ghostbox set work --unset pool.cache         back to its default
  ghostbox config show --vm work --origin      what it is now

A VM that runs takes at once what its pager can take (cache, readahead, rebuilding, what to do on a donor's loss); the
rest counts at its next start.
""",
)
@click.argument("words", nargs=-1, metavar="[NAME] [KEY=VALUE]...")
@vm_options
@click.option("--unset", "removed", multiple=True, metavar="KEY", help="Back to the default; may be given again.")
@output_options
@click.pass_obj
def set_(context: Context, /, words: tuple[str, ...], removed: tuple[str, ...], output: str, **flags: object) -> None:
    """Change what a VM is: its definition, which `up` starts. Exit code 5 if the VM cannot become that."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"one VM at a time, not {' '.join(names)}", hint="settings are KEY=VALUE")
    vm = chosen(context, names[0] if names else None)
    pairs = (word.partition("=") for word in words if "=" in word)
    settings = {full_key(key): document.scalar(value) for key, _, value in pairs}
    given = {key: value for key, value in by_key(flags).items() if value not in (None, ())}
    if not settings and not given and not removed:
        raise UsageError("nothing to set", hint=f"what it is: ghostbox config show --vm {vm}; what there is: --help")
    config = context.config({**given, "vm.name": vm}, settings)
    found = defining.change(config, [full_key(key) for key in removed], context.paths, Stages())
    emit(found, output, lambda: _changed(found))


@click.command(
    epilog="""\b
Examples:
  ghostbox edit work                      with $VISUAL or $EDITOR
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
    """Edit what a VM is, its definition, as a file; it is checked before it is taken."""
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
            if file is None and _again(err):
                continue
            raise _kept(err, draft, given=file) from err
    draft.file.unlink(missing_ok=True)
    emit(found, output, lambda: _changed(found))


def _again(err: GhostboxError) -> bool:
    """Tell whether the user wants to edit once more, after an error; only one at a terminal is asked."""
    if not sys.stdin.isatty():
        return False
    for word, text in (("error", err.message), ("why", err.why), ("fix", err.hint)):
        if text:
            Stages(quiet=False).note(f"{word}: {text}")
    return click.confirm("Edit it again?", default=True, err=True)


def _kept(err: GhostboxError, draft: Draft, *, given: Path | None) -> GhostboxError:
    """Return an error that also says where the user's work is: it is never thrown away."""
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
        return f"VM '{found.name}' is that already: nothing changes"
    return "\n".join(str(each) for each in found.changes)
