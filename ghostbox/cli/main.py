# SPDX-License-Identifier: MIT
"""Run the command ``ghostbox``: global options, the subcommands' modules, and the one place that catches errors.

A subcommand's module is imported when the command is run: the program starts fast, and a module that cannot be imported
breaks only its own command.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from ghostbox import __version__
from ghostbox.cli import options
from ghostbox.cli.context import Context
from ghostbox.errors import EXIT_CODES, GhostboxError, Interrupted, exhausted
from ghostbox.system import consent
from ghostbox.terminal import printable, set_up_streams


@dataclass(frozen=True)
class Command:
    """Holds a subcommand's module, and its line in ``ghostbox --help``."""

    module: str
    help: str


GROUPS: Mapping[str, Mapping[str, Command]] = {
    "Virtual machines": {
        "up": Command("ghostbox.cli.vm", "Create and start a VM with the RAM of the donors."),
        "plan": Command("ghostbox.cli.plan", "Predict what a VM's remote memory will cost."),
        "down": Command("ghostbox.cli.vm", "Shut a VM down and give its memory back."),
        "start": Command("ghostbox.cli.lifecycle", "Start an existing VM."),
        "stop": Command("ghostbox.cli.lifecycle", "The same as down."),
        "restart": Command("ghostbox.cli.lifecycle", "Shut a VM down and start it again."),
        "set": Command("ghostbox.cli.lifecycle", "Change a VM's definition."),
        "edit": Command("ghostbox.cli.lifecycle", "Edit a VM's definition as a file."),
        "rename": Command("ghostbox.cli.lifecycle", "Give a VM another name."),
        "clone": Command("ghostbox.cli.lifecycle", "Copy a VM."),
        "autostart": Command("ghostbox.cli.lifecycle", "Start VMs when this machine starts."),
        "shell": Command("ghostbox.cli.vm", "Log in by SSH, or run one command."),
        "cp": Command("ghostbox.cli.files", "Copy files to a VM or from it."),
        "ssh-config": Command("ghostbox.cli.files", "Let ssh, scp and editors find VMs by name."),
        "list": Command("ghostbox.cli.vm", "List the VMs."),
        "info": Command("ghostbox.cli.vm", "Show what a VM is made of."),
        "status": Command("ghostbox.cli.vm", "Show whether a VM runs, and the health of its memory."),
        "recover": Command("ghostbox.cli.recover", "Give a VM whose pager died another pager."),
        "top": Command("ghostbox.cli.top", "Watch the remote memory of a VM."),
        "logs": Command("ghostbox.cli.vm", "Show the logs of a VM, its pager and its donors."),
        "console": Command("ghostbox.cli.vm", "Attach to the serial console."),
        "wait": Command("ghostbox.cli.vm", "Wait until a VM is ready."),
        "delete": Command("ghostbox.cli.vm", "Delete a VM and its disks."),
        "snapshot": Command("ghostbox.cli.snapshot", "Keep the state of a stopped VM's disks, and restore it."),
        "export": Command("ghostbox.cli.snapshot", "Write a stopped VM into one file."),
        "import": Command("ghostbox.cli.snapshot", "Make a VM from an exported file."),
    },
    "Donors": {
        "memserver": Command("ghostbox.cli.memserver", "Lend this machine's RAM."),
        "token": Command("ghostbox.cli.token", "Pair hosts with a donor of this machine."),
        "donor": Command("ghostbox.cli.donor", "Show donors and their leases; add and drain donors."),
    },
    "Images": {
        "image": Command("ghostbox.cli.image", "Build, import, list and delete guest images."),
    },
    "This installation": {
        "demo": Command("ghostbox.cli.demo", "Show GhostBox on this machine alone."),
        "bench": Command("ghostbox.cli.bench", "Measure GhostBox beside the alternatives."),
        "doctor": Command("ghostbox.cli.doctor", "Check this machine, and show what mends it."),
        "service": Command("ghostbox.cli.service", "Start a donor, or the VMs, with this machine."),
        "config": Command("ghostbox.cli.config", "Show and check the configuration."),
        "paths": Command("ghostbox.cli.config", "Show the paths of programs and files."),
        "completion": Command("ghostbox.cli.config", "Print a completion script for a shell."),
    },
}
HIDDEN: Mapping[str, Command] = {
    "deployed": Command("ghostbox.cli.deployed", "Start, show and stop a deployed memserver, on its own machine."),
    "supervise": Command("ghostbox.cli.supervise", "Supervise a VM until it ends."),
    "share-files": Command("ghostbox.cli.share_files", "Serve a shared folder of a VM."),
    "settle-leases": Command("ghostbox.cli.settle_leases", "Release leases whose donors did not answer earlier."),
}
ALIASES: Mapping[str, str] = {"ssh": "shell", "ls": "list", "rm": "delete"}

_EXAMPLES = """\b
Examples:
  ghostbox demo                                  see it work on this machine
  ghostbox memserver --size 16G                  on a donor: lend 16 GiB
  ghostbox up --remote-memory 16G --donor tower  on the host: a VM with 16 GiB more
  ghostbox shell                                 log in

-c, -v, -q and --no-color may also stand behind the command. Every option can be given in the environment:
--remote-memory is GHOSTBOX_REMOTE_MEMORY. Only the command line changes an existing VM.

\b
Exit codes:
"""
_EXAMPLES += "".join(f"  {code:<4} {meaning}\n" for code, meaning in EXIT_CODES.items())
_EXAMPLES += "\nshell with a command returns the code of that command."

_SHORT_HELP = """\
ghostbox: one Linux VM with the RAM of all your machines

  ghostbox demo                                  see it work on this machine
  ghostbox memserver --size 16G                  on a donor: lend 16 GiB
  ghostbox up --remote-memory 16G --donor tower  on the host: a VM with 16 GiB more
  ghostbox shell                                 log in
  ghostbox status                                how it does
  ghostbox doctor                                show what this machine lacks, and what mends it

All commands: ghostbox --help"""


def commands() -> dict[str, Command]:
    """Return every subcommand by its name."""
    return {name: command for group in GROUPS.values() for name, command in group.items()}


class LazyGroup(click.Group):
    """Is a group that imports its commands when they are asked for, and lists them in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; return None if there is no such name."""
        entry = {**commands(), **HIDDEN}.get(ALIASES.get(cmd_name, cmd_name))
        return None if entry is None else _import(ALIASES.get(cmd_name, cmd_name), entry.module)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; if there is none, fail and name the nearest."""
        name = args[0]
        if not name.startswith("-") and name not in {**commands(), **HIDDEN, **ALIASES}:
            near = difflib.get_close_matches(name, [*commands(), *ALIASES], n=1)
            ctx.fail(f"No such command '{name}'." + (f" Did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section, without importing them."""
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, command.help) for name, command in group.items()], col_max=12)
        with formatter.section("Aliases"):
            formatter.write_text(", ".join(f"{alias} = {name}" for alias, name in ALIASES.items()))


def _import(name: str, module_name: str) -> click.Command:
    try:
        members = vars(importlib.import_module(module_name)).values()
    except (ImportError, SyntaxError) as err:
        raise _broken(name, module_name, str(err), missing=getattr(err, "name", None)) from err
    command = next((found for found in members if isinstance(found, click.Command) and found.name == name), None)
    if command is None:
        raise _broken(name, module_name, "the module has no such command")
    _flatten_env(command)
    if "_GHOSTBOX_COMPLETE" in os.environ:
        importlib.import_module("ghostbox.cli.completion").attach(command, (name,))
    return options.add_global_options(command)


def _broken(name: str, module_name: str, why: str, *, missing: str | None = None) -> GhostboxError:
    """Return the error for a command that cannot be imported; ``missing`` is the module that was not found."""
    if missing is not None and missing.partition(".")[0] != "ghostbox":
        return GhostboxError(
            f"'{name}' needs the Python package {missing}, which this installation lacks",
            why="it was installed for another role (donor or host)",
            hint="./bootstrap install installs what both roles need",
        )
    hint = "install GhostBox again: ./bootstrap install"
    return GhostboxError(f"cannot load the command '{name}' from {module_name}", why=why, hint=hint)


def _flatten_env(command: click.Command) -> None:
    """Let ``GHOSTBOX_<OPTION>`` set the option of every command (click would want ``GHOSTBOX_<COMMAND>_<OPTION>``)."""
    command.context_settings["auto_envvar_prefix"] = "GHOSTBOX"
    if isinstance(command, click.Group):
        for nested in command.commands.values():
            _flatten_env(nested)


@click.group(
    cls=LazyGroup,
    params=options.global_options(hidden=False),
    epilog=_EXAMPLES,
    context_settings={"auto_envvar_prefix": "GHOSTBOX", "help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="ghostbox", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """One Linux VM with the RAM of all your machines."""
    context = ctx.ensure_object(Context)
    context.set_up_log()
    consent.withdraw()
    consent.by(context.agrees_to)
    if ctx.invoked_subcommand is None:
        click.echo(_SHORT_HELP)


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; every error is reported here."""
    context = Context(output=_wanted_output(argv))
    try:
        result: Any = cli.main(list(argv), prog_name="ghostbox", obj=context, standalone_mode=False)
    except GhostboxError as err:
        return _report(err, context)
    except click.exceptions.NoArgsIsHelpError as err:  # a group without a subcommand, e.g. `ghostbox donor`
        click.echo(err.ctx.get_help() if err.ctx else _SHORT_HELP)
        return 0
    except click.ClickException as err:
        return _report(_usage(err), context, exit_code=err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _report(Interrupted("interrupted"), context)
    except Exception as err:
        known = exhausted(err) if isinstance(err, OSError) else None
        bug = GhostboxError(
            f"internal error: {type(err).__name__}: {err}", hint="run it again with -vv and report what it prints"
        )
        return _report(known or bug, context)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def main() -> NoReturn:
    """Run the program; the console script calls this."""
    set_up_streams()
    if os.environ.get("HOME") == "":
        del os.environ["HOME"]
    sys.exit(run(sys.argv[1:]))


def _usage(err: click.ClickException) -> GhostboxError:
    command = err.ctx.command_path if isinstance(err, click.UsageError) and err.ctx else "ghostbox"
    return GhostboxError(err.format_message(), hint=f"{command} --help")


def _wanted_output(argv: Sequence[str]) -> str:
    """Guess the output format before the command line is parsed: errors of the command line also use it."""
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    wanted = [new for old, new in itertools.pairwise(words) if old in {"-o", "--output"}]
    wanted += [word.partition("=")[2] for word in words if word.startswith("--output=")]
    as_json = "--json" in words or "-ojson" in words or "json" in wanted
    return "json" if as_json or os.environ.get("GHOSTBOX_OUTPUT") == "json" else "table"


def _report(err: GhostboxError, context: Context, *, exit_code: int | None = None) -> int:
    code = err.exit_code if exit_code is None else exit_code
    if context.verbosity >= 2:
        traceback.print_exc()
    if context.output == "json":
        parts = {"kind": type(err).__name__, "message": err.message, "why": err.why, "hint": err.hint}
        click.echo(json.dumps({"error": {**parts, "exit_code": code}}), err=True)
        return code
    plain = context.color is False or "NO_COLOR" in os.environ
    lines = [("error", "red", err.message), ("why", "yellow", err.why), ("fix", "green", err.hint)]
    for word, color, text in lines:
        if text:
            label = click.style(word + ":", fg=color, bold=True)
            click.echo(f"{label} {printable(text)}", err=True, color=False if plain else None)
    return code


if __name__ == "__main__":
    main()
