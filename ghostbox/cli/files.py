# SPDX-License-Identifier: MIT
"""Copy files of VMs, and let other programs find VMs by name: ``ghostbox cp``, ``ghostbox ssh-config``."""

from __future__ import annotations

from pathlib import Path

import click

from ghostbox import session
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.output import Stages, echo
from ghostbox.errors import NotFound, UsageError
from ghostbox.session import copying, record, ssh_include
from ghostbox.session.copying import Options


@click.command(
    epilog="""\b
Examples:
  ghostbox cp notes.txt work:                 into the home directory of the VM 'work'
  ghostbox cp :results.csv .                  copy back; with one VM only, its name may be left out
  ghostbox cp -r src data work:/srv           copy directories with all that is in them
  ghostbox cp ./a:b.txt "work:a b/c.txt"      a local name with a colon begins with ./

Names are taken literally: * and ? in a VM's path are not patterns.
"""
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.argument("target", metavar="TARGET")
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with all that is in them.")
@click.option("-p", "--preserve", is_flag=True, help="Keep times and modes.")
@click.pass_obj
def cp(context: Context, /, sources: tuple[str, ...], target: str, recursive: bool, preserve: bool) -> None:
    """Copy files to a VM or from it: one side is VM:PATH. A terminal shows the progress."""
    options = Options(recursive, preserve, quiet=context.verbosity < 0)
    copying.copy(sources, target, context.paths, lambda name: chosen(context, name), options=options)


@click.command(
    "ssh-config",
    epilog="""\b
Examples:
  ghostbox ssh-config               the Host blocks of all VMs
  ghostbox ssh-config work          the Host block of one VM
  ghostbox ssh-config --install     from now on: ssh work, scp, rsync, VS Code
  ghostbox ssh-config --uninstall
""",
)
@click.argument("name", required=False)
@click.option("--install", is_flag=True, help="Put one Include line at the top of ~/.ssh/config.")
@click.option("--uninstall", is_flag=True, help="Take that line out again.")
@click.option("--file", type=click.Path(), metavar="FILE", help="Use this file instead of ~/.ssh/config.")
@click.pass_obj
def ssh_config(context: Context, /, name: str | None, install: bool, uninstall: bool, file: str | None) -> None:
    """Print the ssh configuration that finds VMs by name, or include it in your own."""
    if install and uninstall:
        raise UsageError("--install and --uninstall exclude each other")
    paths = context.paths
    if install or uninstall:
        if name is not None:
            raise UsageError("the Include line is for all VMs", hint="leave the name out")
        _change(Path(file) if file else ssh_include.user_config(), context, install=install)
        return
    known = record.names(paths) if name is None else [session.Book(paths.vm(name)).need(name, paths).name]
    text = ssh_include.blocks(paths, known)
    if not text:
        raise NotFound(
            "no VM was started yet" if name is None else f"VM '{name}' was never started", hint="ghostbox up"
        )
    echo(text, nl=False)


def _change(file: Path, context: Context, *, install: bool) -> None:
    paths, stages = context.paths, Stages()
    done = ssh_include.install(file, paths, record.names(paths)) if install else ssh_include.uninstall(file, paths)
    if not done.changed:
        stages.note(f"{file} has the line already" if install else f"{file} has no such line")
        return
    stages.note(f"{file}: {'added' if install else 'removed'} the line {done.line}")
    for name in done.shadowed:
        stages.note(f"warning: the file has its own Host '{name}'; the VM of that name now comes before it")
