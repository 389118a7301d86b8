# SPDX-License-Identifier: MIT
"""Define the commands for VMs: up, down, shell, list, info, status, logs, console, wait, delete."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

import click

from ghostbox import session
from ghostbox.cli import show
from ghostbox.cli.chosen import chosen, chosen_for_up
from ghostbox.cli.context import Context
from ghostbox.cli.options import WordsCommand, confirm, split_words, yes_option
from ghostbox.cli.output import Stages, echo, emit, output_options, plain
from ghostbox.cli.vm_options import vm_options
from ghostbox.config import Config
from ghostbox.errors import NotFound, NotRunning, PoolDegraded
from ghostbox.pager.health import Level
from ghostbox.plan import domain_xml
from ghostbox.plan.plan import with_uses
from ghostbox.session import VmState, definition, events, guest_files, logs, record
from ghostbox.units import parse_duration

_name = click.argument("name", required=False)


@click.command(
    epilog="""\b
Examples:
  ghostbox up --donor tower --remote-memory 16G          borrow 16 GiB from 'tower'
  ghostbox up work --memory 4G --cache 2G -p 8080:80     make a second VM, whose port 80 is port 8080 here
  ghostbox up --donor tower --donor attic --replicas 2   either donor may die
  ghostbox up lan --donor tower --network bridge:br0     give the VM its own address on the LAN
  ghostbox up -c lab.yaml --dry-run                      show what would be done
  ghostbox up --print xml                                print the libvirt domain, and do nothing
"""
)
@_name
@vm_options
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
@click.option(
    "--print",
    "printed",
    type=click.Choice(["plan", "xml", "cloud-init"]),
    help="Print a part of the plan and do nothing.",
)
@click.option("--timeout", metavar="TIME", help="How long to wait for SSH, then for cloud-init.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the VM runs.")
@click.option("--no-recover", is_flag=True, help="Leave a VM frozen whose pager died.")
@click.option("--overcommit", is_flag=True, help="Start even if this machine has too little memory.")
@output_options
@click.pass_obj
def up(
    context: Context,
    /,
    *,
    name: str | None,
    dry_run: bool,
    printed: str | None,
    timeout: str | None,
    no_wait: bool,
    no_recover: bool,
    overcommit: bool,
    output: str,
) -> None:
    """Create a VM with the RAM of the donors, or start an existing VM as it is defined.

    Options that are given for an existing VM change its definition, as `ghostbox set` does.
    """
    timeout_s = None if timeout is None else parse_duration(timeout)
    config = context.config({"vm.name": chosen_for_up(context, name)})
    if dry_run or printed:
        _print_plan(context, config, printed or "plan", output)
        return
    result = session.up(
        config,
        context.paths,
        Stages(),
        wait=not no_wait,
        heal_pager=not no_recover,
        timeout_s=timeout_s,
        overcommit=overcommit,
    )
    emit(result, output, lambda: show.up_result(result))


def _print_plan(context: Context, config: Config, what: str, output: str) -> None:
    book = session.Book(context.paths.vm(config.vm.name))
    record = book.load()
    defined = definition.settle(book, config)
    for line in (*defined.ignored, *map(str, defined.changes)):
        Stages().note(line)
    plan = session.make_plan(defined.config, context.paths, record, start_daemon=False)
    if what == "xml":
        echo(domain_xml.build(plan), nl=False)
    elif what == "cloud-init":
        echo(guest_files.preview_user_data(plan), nl=False)
    else:
        shown = with_uses(plan)
        emit(shown, output, lambda: show.plan(shown))


@click.command(
    epilog="""\b
Examples:
  ghostbox down                shut the VM down in order
  ghostbox down work --force   end it at once
"""
)
@_name
@click.option("--force", is_flag=True, help="End it at once; what the guest has not written is lost.")
@click.option("--timeout", default="2m", show_default=True, metavar="TIME", help="How long the guest may take.")
@output_options
@click.pass_obj
def down(context: Context, /, name: str | None, force: bool, timeout: str, output: str) -> None:
    """Shut a VM down and give its memory back. The disk stays. Exit code 124 if the guest does not shut down."""
    name = chosen(context, name)
    stages = Stages()
    ran = session.down(name, context.paths, stages, force=force, timeout_s=parse_duration(timeout))
    _done({"name": name, "state": VmState.STOPPED, "ran": ran}, output)
    stages.note(f"VM '{name}' is stopped" if ran else f"VM '{name}' does not run")


def _done(result: Mapping[str, object], output: str) -> None:
    """Print the result of a command that prints no table."""
    if output != "table":
        emit(result, output, lambda: "")


@click.command(
    cls=WordsCommand,
    epilog="""\b
Examples:
  ghostbox shell                        log in
  ghostbox shell work free -h           run one command, and return its exit code
  ghostbox shell -- numactl --hardware  run a command in the only VM
  ghostbox shell work 'ls | wc -l'      one word is a line for the guest's shell
  ghostbox shell --wait work            log in as soon as the guest has booted

The first word is the VM's name, unless it stands behind --; the other words are the command. Each of several words is
one argument of the command. The exit code is the command's; 1 if ssh itself fails, 3 if the VM does not run.
""",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[NAME] [--] [COMMAND…]")
@click.option("--wait", "wait_first", is_flag=True, help="Wait until the guest has booted.")
@click.pass_obj
def shell(context: Context, /, words: tuple[str, ...], wait_first: bool) -> int:
    """Log in by SSH, or run one command."""
    given, command = split_words(words)
    _check_is_name(context, given, command)
    name = chosen(context, given)
    if wait_first:
        session.wait_ready(name, context.paths, Stages(), timeout_s=_boot_timeout_s(context, name))
    return session.shell(name, context.paths, command)


def _boot_timeout_s(context: Context, name: str) -> float:
    """Return how long the VM, as it is defined, may take to boot."""
    return session.defined(name, context.paths, context.config()).vm.boot_timeout_s


def _check_is_name(context: Context, given: str | None, command: tuple[str, ...]) -> None:
    """Refuse a command in the place of the name, with a hint where the command goes."""
    have = record.names(context.paths)
    if given is None or given in have or not have:
        return
    words = shlex.join((given, *command))
    hint = f"to run a command in a VM: ghostbox shell {have[0]} {words}"
    hint += "" if len(have) > 1 else f", or: ghostbox shell -- {words}"
    raise NotFound(f"no VM named '{given}'", why=f"there are: {', '.join(have)}", hint=hint)


@click.command(
    "list",
    epilog="""\b
Examples:
  ghostbox list
  ghostbox list --json
""",
)
@output_options
@click.pass_obj
def list_(context: Context, /, output: str) -> None:
    """List the VMs."""
    found = session.summaries(context.paths)
    emit(found, output, lambda: show.summaries(found))
    for each in found:
        if each.state is VmState.BROKEN:
            Stages().note(f"VM '{each.name}' is frozen since its pager died: ghostbox recover {each.name}")
        if each.problem is not None:
            Stages().note(f"VM '{each.name}': {each.problem.text}: ghostbox status {each.name}")
        if each.disk_problem is not None:
            Stages().note(f"VM '{each.name}' is paused, its disk cannot be written: ghostbox status {each.name}")
        if each.health not in (None, Level.OK):
            Stages().note(f"the memory of VM '{each.name}' is {each.health}: ghostbox status {each.name}")


@click.command(
    epilog="""\b
Examples:
  ghostbox info
  ghostbox info work -o yaml
"""
)
@_name
@output_options
@click.pass_obj
def info(context: Context, /, name: str | None, output: str) -> None:
    """Show what a VM is made of."""
    found = session.info(chosen(context, name), context.paths)
    emit(found, output, lambda: show.info(found))
    for line in show.health_notes(found):
        Stages().note(line)


@click.command(
    epilog="""\b
Examples:
  ghostbox status            show the health, with advice if something is wrong
  ghostbox status --json     show all counters of the pager
"""
)
@_name
@click.option("--no-recover", is_flag=True, help="Start no other pager for a VM that is frozen because its pager died.")
@output_options
@click.pass_obj
def status(context: Context, /, name: str | None, no_recover: bool, output: str) -> int:
    """Show a VM's state and health; exit code 3 if the VM does not run, 6 if its memory or a disk has a problem.

    A VM that is frozen because its pager died gets another pager, as by `ghostbox recover`.
    """
    found = session.status(chosen(context, name), context.paths, heal_pager=not no_recover)
    emit(found, output, lambda: show.status(found))
    stages = Stages()
    if found.state is VmState.BROKEN:
        stages.note(f"VM '{found.name}' is frozen since its pager died: ghostbox recover {found.name}")
    for line in (*show.health_notes(found), *show.channel_notes(found)):
        stages.note(line)
    if found.disk_problem is not None or found.problem is not None:
        return PoolDegraded.exit_code
    ill = found.health is not None and found.health.level is not Level.OK
    if ill and (found.state in (VmState.RUNNING, VmState.STOPPING) or found.paused_for_donor):
        return PoolDegraded.exit_code
    return 0 if found.state in (VmState.RUNNING, VmState.STOPPING) else NotRunning.exit_code


@click.command(
    "logs",
    epilog="""\b
Examples:
  ghostbox logs                         show the guest's console
  ghostbox logs work --source pager -f  follow the pager's log
  ghostbox logs --source qemu -n 20
  ghostbox logs --source events         show donors that failed or returned, copies that were made
""",
)
@_name
@click.option("-f", "--follow", is_flag=True, help="Show new lines until Ctrl-C or the end of the VM.")
@click.option(
    "--source", type=click.Choice([str(each) for each in logs.Source]), default="boot", show_default=True,
    help="boot: the guest's console; events: what happened to its memory; memserver: the donors on this machine.",
)  # fmt: skip
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Show only the last N lines.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each line.")
@click.pass_obj
def logs_(context: Context, /, name: str | None, follow: bool, source: str, lines: int | None, as_json: bool) -> None:
    """Show the logs of a VM, its pager and its donors. Exit code 4 if the log does not exist yet."""
    name = "" if source == logs.Source.MEMSERVER and name is None else chosen(context, name)
    files = logs.find(name, logs.Source(source), context.paths)
    if as_json:
        for entry in logs.entries(files, lines):
            echo(json.dumps(plain(entry)))
        for entry in logs.follow_entries(files, logs.ended(name, context.paths)) if follow else ():
            echo(json.dumps(plain(entry)))
        return
    shown = events.sentence if source == logs.Source.EVENTS else str
    for file in files:
        if len(files) > 1:
            echo(f"==> {file} <==")
        for line in logs.lines(file, lines):
            echo(shown(line))
    if source == logs.Source.EVENTS and not any(file.exists() for file in files):
        Stages().note(f"nothing has happened to the memory of VM '{name}'")
    if follow:
        for text in logs.follow(files, logs.ended(name, context.paths)):
            echo("".join(map(shown, text.splitlines(keepends=True))), nl=False)


@click.command(
    epilog="""\b
Examples:
  ghostbox console           attach; Ctrl-] detaches

Use it where SSH does not help: vm.user is logged in there, without a password. Users who may open it (root, libvirt's
group) may replace the VM's disk as well.
"""
)
@_name
@click.pass_obj
def console(context: Context, /, name: str | None) -> None:
    """Attach to the serial console."""
    session.console(chosen(context, name), context.paths)


@click.command(
    epilog="""\b
Examples:
  ghostbox wait                               wait until SSH works and cloud-init is done
  ghostbox wait work --for stopped --timeout 1h
"""
)
@_name
@click.option(
    "--for",
    "event",
    type=click.Choice(["ready", "stopped"]),
    default="ready",
    show_default=True,
    help="What to wait for.",
)
@click.option("--timeout", metavar="TIME", help="How long to wait; the default is vm.boot_timeout.")
@output_options
@click.pass_obj
def wait(context: Context, /, name: str | None, event: str, timeout: str | None, output: str) -> None:
    """Wait until a VM is ready, or stopped. Exit code 124 after the timeout, 3 if the VM does not run."""
    name = chosen(context, name)
    given_s = None if timeout is None else parse_duration(timeout)
    own = _boot_timeout_s(context, name)
    timeout_s = own if given_s is None else given_s
    if event == "stopped":
        session.wait_stopped(name, context.paths, timeout_s=timeout_s)
    else:
        session.wait_ready(name, context.paths, Stages(), timeout_s=timeout_s)
    _done({"name": name, "state": VmState.STOPPED if event == "stopped" else VmState.RUNNING}, output)


@click.command(
    epilog="""\b
Examples:
  ghostbox delete work       asks first
  ghostbox delete work -y --force
  ghostbox delete work --forget    remove a copy of a VM that another machine started
"""
)
@_name
@yes_option
@click.option("--force", is_flag=True, help="Delete the VM even if it runs: it is ended at once.")
@click.option("--forget", is_flag=True, help="Remove the files of another machine's VM; nothing is ended or released.")
@output_options
@click.pass_obj
def delete(context: Context, /, name: str | None, yes: bool, force: bool, forget: bool, output: str) -> None:
    """Delete a VM and its disks. Exit code 5 if the VM runs."""
    if force and forget:
        raise click.UsageError("--force ends a VM, --forget ends nothing: give one of them")
    name = chosen(context, name)
    session.Book(context.paths.vm(name)).need(name, context.paths)
    if forget:
        _forget(context, name, yes=yes, output=output)
        return
    confirm(f"Delete VM '{name}' and all that is on its disk?", yes=yes)
    stages = Stages()
    session.delete(name, context.paths, stages, force=force)
    _done({"deleted": name}, output)
    stages.note(f"VM '{name}' is deleted")


def _forget(context: Context, name: str, *, yes: bool, output: str) -> None:
    place = context.paths.vm(name).state
    confirm(
        f"Remove {place}? VM '{name}' may run on another machine: if both share this directory, it loses its disk.",
        yes=yes,
    )
    leases = session.forget(name, context.paths)
    _done({"forgotten": name, "leases": [plain(lease) for lease in leases]}, output)
    stages = Stages()
    stages.note(f"VM '{name}' is forgotten here: {place} is removed, nothing was ended or released")
    for lease in leases:
        stages.note(
            f"if the VM is gone there, too, give its memory back: ghostbox donor release {lease.donor} {lease.name}"
        )
