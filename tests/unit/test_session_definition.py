# SPDX-License-Identifier: MIT
"""A VM is defined once: its definition counts later, commands change it, and it refuses bad values. VMs are stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from ghostbox import config
from ghostbox.config import ExtraDisk, PortForward
from ghostbox.errors import Refused
from ghostbox.paths import VmPaths
from ghostbox.plan.tiering import Tiering
from ghostbox.session import definition
from ghostbox.session.record import Book, VmState
from ghostbox.units import GIB, format_bytes, parse_bytes
from helpers.stopped import stopped_vm, write_editor

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def box(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> VmPaths:
    """Return a stopped VM, as an earlier version left it."""
    monkeypatch.chdir(ghostbox_dirs)
    return stopped_vm("box")


def settled(files: VmPaths, flags: dict[str, object] | None = None, file: Path | None = None) -> definition.Defined:
    book = Book(files)
    book.load()
    return definition.settle(book, config.load({"vm.name": "box", **(flags or {})}, file))


def test_a_vm_of_an_earlier_version_is_defined_by_its_record(box: VmPaths) -> None:
    found = settled(box).config
    assert (found.vm.memory_bytes, found.vm.remote_memory_bytes, found.pool.cache_bytes) == (5 * GIB, 32 * GIB, 2 * GIB)
    assert (found.pool.donors, found.pool.replicas) == (("tower", "attic"), 2)
    assert found.vm.ports == (PortForward(8080, 80),)
    assert not box.definition.exists(), "who only looks writes nothing"


def test_disks_folders_and_network_of_a_record_are_defined_too_and_no_disk_shrinks(ghostbox_dirs: Path) -> None:
    files = stopped_vm("box", disks=(50 * GIB, GIB), shares=("/a:ro", "/b:rw"), network="libvirt:default")
    found = settled(files).config.vm
    assert [str(disk) for disk in found.disks] == ["50GiB", "1GiB"]
    assert [str(each) for each in found.shares] == ["/a:ro", "/b:rw"]
    assert str(found.network) == "libvirt:default"
    assert settled(files, {"vm.disks": ["60G"]}).config.vm.disks == (ExtraDisk(60 * GIB),)
    with pytest.raises(Refused, match="disk3 of VM 'box' has 1 GiB and cannot shrink to 512 MiB"):
        settled(files, {"vm.disks": ["50G", "512M"]})


def test_what_a_record_does_not_say_comes_from_the_configuration_of_that_day(box: VmPaths, ghostbox_dirs: Path) -> None:
    (ghostbox_dirs / "ghostbox.yaml").write_text("vm: {cloud_init: extra.yaml, memory: 1G}\n")
    found = settled(box)
    assert found.config.vm.cloud_init == ghostbox_dirs / "extra.yaml"
    assert found.config.vm.memory_bytes == 5 * GIB
    assert f"cloud_init: {ghostbox_dirs}/extra.yaml" in found.text


@pytest.mark.parametrize(
    ("why", "word"),
    [("guest.tiering is on", "damon"), ("guest.tiering is numa", "numa"), ("KVM", "auto"), ("emulated", "auto")],
)
def test_tiering_auto_of_an_earlier_version_stays_auto(ghostbox_dirs: Path, why: str, word: str) -> None:
    files = stopped_vm("box", tiering=Tiering(on=True, why=why))
    assert settled(files).config.guest.tiering == word


def test_up_again_from_another_directory_starts_what_was_defined(box: VmPaths, ghostbox_dirs: Path) -> None:
    definition.keep(box, "vm:\n  memory: 5GiB\npool:\n  donors: [tower]\n")
    other = ghostbox_dirs / "other"
    other.mkdir()
    (ghostbox_dirs / "ghostbox.yaml").write_text("vm: {memory: 1G, cpus: 7}\npool: {donors: [elsewhere]}\n")
    found = settled(box)
    assert (found.config.vm.memory_bytes, found.config.vm.cpus, found.config.pool.donors) == (5 * GIB, 2, ("tower",))
    assert found.changes == ()
    assert found.ignored[0] == (
        "note: VM 'box' stays as it is defined; other values for vm.memory, vm.cpus, pool.donors do not apply to it:"
        f" {ghostbox_dirs}/ghostbox.yaml:1, {ghostbox_dirs}/ghostbox.yaml:2"
    )


def test_what_lies_in_the_environment_changes_nothing_either(box: VmPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_VM_MEMORY", "1G")
    assert settled(box).config.vm.memory_bytes == 5 * GIB
    assert "environment GHOSTBOX_VM_MEMORY" in settled(box).ignored[0]


def test_flags_change_the_definition_and_say_so(box: VmPaths) -> None:
    found = settled(box, {"vm.memory": "8G", "vm.cpus": 2, "vm.ports": ["1:2", "3:4"]})
    assert [str(each) for each in found.changes] == [
        "vm.memory is now 8GiB, it was 5GiB",
        "vm.ports is now 1:2, 3:4, it was 8080:80",
    ]
    assert found.config.vm.memory_bytes == 8 * GIB
    assert definition.parse(box, found.text).vm.memory_bytes == 8 * GIB


def test_the_file_of_c_counts_like_flags_that_are_weaker(box: VmPaths, ghostbox_dirs: Path) -> None:
    lab = ghostbox_dirs / "lab.yaml"
    lab.write_text("vm: {memory: 6G, cpus: 3}\n")
    found = settled(box, {"vm.cpus": 4}, lab)
    assert (found.config.vm.memory_bytes, found.config.vm.cpus) == (6 * GIB, 4)
    assert found.ignored == ()


def test_donor_that_was_added_by_hand_is_used_at_the_next_start_too(box: VmPaths) -> None:
    book = Book(box)
    book.load()
    definition.add_donor(book, "shed")
    assert not box.definition.exists(), "its record says it"
    definition.keep(box, "pool:\n  donors: [tower]  # mine\n")
    definition.add_donor(book, "shed")
    definition.add_donor(book, "shed")
    assert box.definition.read_text() == "pool:\n  donors: [tower, shed]  # mine\n"
    definition.keep(box, "vm: {cpus: 2}\n")
    definition.add_donor(book, "shed")
    assert "shed" not in box.definition.read_text(), "all that are known are used"
    definition.keep(box, "pool:\n  donors: [attic]\n")
    definition.add_donor(book, "192.0.2.7:10810", ("attic",))
    assert "192.0.2.7" not in box.definition.read_text(), "it has the donor by its name"


def test_set_changes_what_up_starts_and_show_says_where_it_comes_from(box: VmPaths, quick_cli: Cli) -> None:
    done = quick_cli(
        "set", "box", "--memory", "8G", "pool.slow=20ms", "cpus=3", "--user", "ana", "--autostart", "--json"
    )
    assert done.returncode == 0, done.stderr
    applied = {each["key"]: each["applies"] for each in json.loads(done.stdout)["changes"]}
    assert applied == {
        "vm.memory": "at the next start",
        "vm.cpus": "at the next start",
        "vm.user": "at the next start",
        "vm.autostart": "now",
        "pool.slow": "at the next start",
    }
    shown = json.loads(quick_cli("config", "show", "--vm", "box", "--origin", "--json").stdout)
    line = box.definition.read_text().splitlines().index("  memory: 8GiB") + 1
    assert shown["vm.memory"] == {"value": "8GiB", "origin": f"{box.definition}:{line}"}
    assert shown["vm.autostart"]["value"] is True
    assert shown["pager.poll_us"] == {"value": 50, "origin": "default"}
    assert "memserver.size" not in shown
    assert quick_cli("set", "--user", "ana").returncode == 0
    for flag, before, after in (("--insecure", False, True), ("--no-insecure", True, False)):
        [change] = json.loads(quick_cli("set", "box", flag, "--json").stdout)["changes"]
        assert change == {"key": "pool.insecure", "before": before, "after": after, "applies": "at the next start"}
    again = quick_cli("set", "--memory", "8G")
    assert again.stdout == "the definition of VM 'box' says that already: nothing changes\n"


def test_set_keeps_comments_and_unset_goes_back_to_the_default(box: VmPaths, quick_cli: Cli) -> None:
    definition.keep(box, "# mine\nvm:\n  memory: 5GiB  # enough\npool:\n  cache: 3GiB\n  donors: [tower]\n")
    done = quick_cli("set", "cache=1G", "--unset", "vm.memory", "--unset", "donors")
    assert done.returncode == 0, done.stderr
    assert box.definition.read_text() == "# mine\npool:\n  cache: 1GiB\n"
    assert "vm.memory is now 4GiB, it was 5GiB (at the next start)" in done.stdout
    assert "pool.donors is now none, it was tower (at the next start)" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--memory", "lots"], 2, "error: --memory: 'lots' is not a size"),
        (["cpus=0"], 2, "error: vm.cpus: 0 is out of range"),
        (["vm.memroy=1G"], 2, "error: command line: unknown key 'vm.memroy'\nfix: did you mean 'vm.memory'?"),
        (["--unset", "vm.nothing"], 2, "error: --unset: unknown key 'vm.nothing'"),
        (["--unset", "vm.name"], 2, "error: --unset: vm.name is not a part of a VM's definition"),
        (["--memory", "5000M"], 2, "error: vm.memory (5000MiB) is not a multiple of 128 MiB"),
        (["--cache", "32G"], 2, "error: pool.cache (32 GiB) is not smaller than vm.remote_memory (32 GiB)"),
        (["--image", "other"], 5, "error: VM 'box' was made from image 'debian', not 'other'"),
        (["--disk", "5G"], 5, "error: the disk of VM 'box' has 20 GiB and cannot shrink to 5 GiB"),
        (["--on-donor-loss", "poison"], 5, "error: pool.on_donor_loss: poison needs KVM"),
        ([], 2, "error: nothing to set\nfix: ghostbox config show --vm box shows the definition"),
        (["box", "other"], 2, "error: one VM at a time, not box other"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_half_done(
    box: VmPaths, quick_cli: Cli, words: list[str], code: int, text: str
) -> None:
    before = settled(box, {"vm.cpus": 4}).text
    definition.keep(box, before)
    done = quick_cli("set", "vm.cpus=5", *words) if words and "box" not in words else quick_cli("set", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert box.definition.read_text() == before
    assert "delete" not in done.stderr, "no advice destroys data"


def running(local: str, **changes: Any) -> definition.Defined:
    """Return the definition after ``--local`` was given for a VM that runs with 5 GiB of memory and 2 GiB of cache."""
    return settled(stopped_vm("box", state=VmState.RUNNING, **changes), {"vm.local": local})


def test_of_a_vm_that_runs_the_cache_takes_all_of_a_new_local_memory(ghostbox_dirs: Path) -> None:
    assert [str(each) for each in running("9G").changes] == ["pool.cache is now 4GiB, it was 2GiB"]
    assert [str(each) for each in running("5632M").changes] == ["pool.cache is now 512MiB, it was 2GiB"]
    assert running("7G").changes == ()


def test_of_a_stopped_vm_new_local_memory_is_split_anew(box: VmPaths) -> None:
    found = settled(box, {"vm.local": "10G"}).config
    assert (found.vm.memory_bytes, found.pool.cache_bytes) == config.split_local(10 * GIB)


def test_memory_for_the_next_start_counts_if_it_is_more_than_the_vm_has(ghostbox_dirs: Path) -> None:
    files = stopped_vm("box", state=VmState.RUNNING)
    for memory, cache in (("6G", 4 * GIB), ("4G", 5 * GIB)):
        definition.keep(files, settled(files, {"vm.memory": memory}).text)
        found = settled(files, {"vm.local": "10G"}).config
        assert (found.written("vm.memory"), found.pool.cache_bytes) == (memory.replace("G", "GiB"), cache)


@pytest.mark.parametrize("local", ["4G", "5G", "5121M"])
def test_local_memory_that_leaves_a_vm_that_runs_no_cache_is_refused(ghostbox_dirs: Path, local: str) -> None:
    text = f"vm.local ({format_bytes(parse_bytes(local))}) leaves no cache beside the memory of VM 'box' (5 GiB), which"
    with pytest.raises(Refused, match=f"^{re.escape(text)} runs$") as caught:
        running(local)
    assert caught.value.hint == "give 5124MiB or more, or stop the VM first: ghostbox down box"


def test_with_one_part_given_nothing_is_special_of_a_vm_that_runs(ghostbox_dirs: Path) -> None:
    files = stopped_vm("box", state=VmState.RUNNING)
    found = settled(files, {"vm.local": "8G", "vm.memory": "6G"})
    assert (found.config.vm.memory_bytes, found.config.pool.cache_bytes) == (6 * GIB, 2 * GIB)


def test_a_vm_that_is_not_there_cannot_be_set(box: VmPaths, quick_cli: Cli) -> None:
    done = quick_cli("set", "nosuch", "cpus=4")
    assert (done.returncode, "error: no VM named 'nosuch'" in done.stderr) == (4, True)


def test_edit_takes_what_the_editor_leaves(box: VmPaths, quick_cli: Cli, ghostbox_dirs: Path) -> None:
    editor = write_editor(ghostbox_dirs, "sed -i 's/memory: 5GiB/memory: 8GiB  # more/' \"$1\"")
    done = quick_cli("edit", env=editor)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "vm.memory is now 8GiB, it was 5GiB (at the next start)\n"
    assert "  memory: 8GiB  # more\n" in box.definition.read_text()
    assert not list(box.state.glob("definition-*"))
    again = quick_cli("edit", "-o", "yaml", env=write_editor(ghostbox_dirs, "true"))
    assert again.stdout == "name: box\nstate: stopped\nchanges: []\n"


def test_edit_that_is_wrong_changes_nothing_and_keeps_the_users_work(
    box: VmPaths, quick_cli: Cli, ghostbox_dirs: Path
) -> None:
    editor = write_editor(ghostbox_dirs, "echo 'pool: {cache: lots}' > \"$1\"")
    done = quick_cli("edit", "box", env=editor)
    [copy] = box.state.glob("definition-*.yaml")
    assert done.returncode == 2
    assert f"error: {copy}:1: pool.cache: 'lots' is not a size" in done.stderr
    assert "why: the definition of VM 'box' stays as it was" in done.stderr
    assert f"your copy is kept: ghostbox edit box --from {copy}" in done.stderr
    assert not box.definition.exists()
    copy.write_text("pool: {cache: 1G}\nvm: {remote_memory: 4G}\n")
    assert quick_cli("edit", "box", "--from", copy).returncode == 0
    assert box.definition.read_text() == "pool: {cache: 1G}\nvm: {remote_memory: 4G}\n"


def test_edit_does_not_overwrite_what_another_command_changed_meanwhile(
    box: VmPaths, quick_cli: Cli, ghostbox_dirs: Path
) -> None:
    quick_cli("set", "cpus=3")
    editor = write_editor(ghostbox_dirs, f"echo '# by another' >> {box.definition}; echo '# mine' >> \"$1\"")
    done = quick_cli("edit", env=editor)
    assert done.returncode == 5
    assert "error: another command changed the definition of VM 'box' meanwhile" in done.stderr
    assert box.definition.read_text().endswith("# by another\n")


def test_editor_that_fails_or_is_not_there_changes_nothing(box: VmPaths, quick_cli: Cli, ghostbox_dirs: Path) -> None:
    failed = quick_cli("edit", env=write_editor(ghostbox_dirs, "exit 3"))
    assert (failed.returncode, "failed with status 3" in failed.stderr) == (1, True)
    gone = quick_cli("edit", env={"EDITOR": "/nowhere/ed", "VISUAL": ""})
    assert "error: cannot run /nowhere/ed: No such file or directory" in gone.stderr


def test_wrong_definition_on_disk_is_named_with_its_line(box: VmPaths, quick_cli: Cli) -> None:
    definition.keep(box, "vm:\n  memory: much\n")
    for words in (["config", "show", "--vm", "box"], ["set", "cpus=3"], ["up", "--dry-run"]):
        done = quick_cli(*words)
        assert (done.returncode, f"error: {box.definition}:2: vm.memory: 'much' is not a size" in done.stderr) == (
            2,
            True,
        )
