# SPDX-License-Identifier: MIT
"""The layers of ARCHITECTURE.md hold: no module imports from a layer below its own, and none imports in a circle."""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

from helpers import project

ENTRY = 6  # ghostbox/__main__.py and ghostbox.cli


def layers() -> dict[str, int]:
    """Read the numbered list of ARCHITECTURE.md: each module's name with its layer."""
    text = (project.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## Python layers")[2].partition("\n## ")[0]
    found: dict[str, int] = {}
    for number, line in re.findall(r"^(\d)\. (.*)$", section, re.MULTILINE):
        outside_parentheses = re.sub(r"\([^)]*\)", "", line)
        found.update({name: int(number) for name in re.findall(r"`(\w+)`", outside_parentheses)})
    return found


def test_every_module_has_a_layer() -> None:
    known = {*layers(), "__main__"}
    top_level = {name.split(".")[1] for name in project.package_modules() if "." in name}
    assert top_level <= known, f"ARCHITECTURE.md names no layer for {sorted(top_level - known)}"


def test_no_import_from_a_lower_layer() -> None:
    layer_of = {**layers(), "__main__": ENTRY}
    wrong = []
    for module, path in project.package_modules().items():
        own = layer_of.get(module.split(".")[1], 0) if "." in module else 0
        for imported, line in project.imports(path):
            parts = imported.split(".")
            if parts[0] == "ghostbox" and len(parts) > 1 and layer_of.get(parts[1], 0) > own:
                wrong.append(f"{project.shown(path)}:{line}: {module} (layer {own}) imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    modules = project.package_modules()
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {imported for imported, _ in project.imports(path)}
        targets = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = {target for target in targets if target in modules and target not in (module, "ghostbox")}
    graphlib.TopologicalSorter(graph).prepare()


def test_no_package_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in project.package_modules().items():
        own = module.split(".")[1:2]
        names = {imported.split(".")[1] for imported, _ in project.imports(path) if imported.startswith("ghostbox.")}
        graph.setdefault(own[0] if own else "", set()).update(names - set(own))
    graphlib.TopologicalSorter(graph).prepare()


def test_subprocess_libvirt_and_the_network_have_one_owner_each() -> None:
    owners = {
        "subprocess": {"ghostbox.system.processes", "ghostbox.deploy.agent"},
        "libvirt": {"ghostbox.system.hypervisor"},
        "paramiko": {"ghostbox.system.ssh"},
        "httpx": {"ghostbox.donors.client"},
        "zeroconf": {"ghostbox.discovery"},
    }
    wrong = []
    for module, path in project.package_modules().items():
        for imported, line in project.imports(path):
            allowed = owners.get(imported.split(".")[0])
            if allowed is not None and not any(module == name or module.startswith(name + ".") for name in allowed):
                wrong.append(f"{project.shown(path)}:{line}: only {', '.join(allowed)} may import {imported}")
    assert not wrong, "\n".join(wrong)


def test_locks_and_signals_to_other_processes_have_one_owner_each() -> None:
    """Only `locks` takes a lock, and only `pidfd` ends a process that was found, never by its bare id."""
    owners = {
        r"\bflock\(": {"ghostbox.system.locks"},
        r"\bos\.kill\((?!os\.getpid)": set(),
        r"\bpidfd_send_signal\(": {"ghostbox.system.pidfd"},
    }
    wrong = [
        f"{project.shown(path)}:{number}: {line.strip()}"
        for module, path in project.package_modules().items()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, allowed in owners.items()
        if re.search(pattern, line) and module not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_ends_the_process() -> None:
    pattern = re.compile(r"\b(sys\.exit|os\._exit|raise SystemExit|quit\(|os\.system|os\.popen)")
    wrong = [
        f"{project.shown(path)}:{number}: {line.strip()}"
        for module, path in project.package_modules().items()
        if not module.startswith("ghostbox.cli")
        for number, line in enumerate(_as_imported(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_memserver_never_includes_qemu_and_the_shim_only_its_protocol() -> None:
    wrong = []
    for path in project.with_suffix(".c", ".h"):
        place = project.shown(path)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = re.match(r'#include "(.+)"', line)
            if match is None:
                continue
            included = match[1]
            if place.startswith(("memserver/", "common/")) and re.match(r"(\.\./)*qemu/|.*(pager|shim)/", included):
                wrong.append(f"{place}:{number}: {line}")
            near = (path.parent, project.ROOT / "qemu", project.ROOT / "qemu/proto")
            if place.startswith("qemu/shim/") and not any((folder / included).exists() for folder in near):
                wrong.append(f"{place}:{number}: {line}")
    assert not wrong, "\n".join(wrong)


def _as_imported(path: Path) -> str:
    """Return a module's tree without the part that runs only in a program (the demo's, in the guest)."""
    return path.read_text(encoding="utf-8").partition('\nif __name__ == "__main__":')[0]
