# SPDX-License-Identifier: MIT
"""Check the machine itself: Python, kernel, GhostBox's programs, memory, swap, ports."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import ghostbox
from ghostbox.doctor.model import Check, Machine, fail, ok, warn
from ghostbox.errors import GhostboxError
from ghostbox.memserver import memory
from ghostbox.system import processes
from ghostbox.units import format_bytes, parse_bytes

_REINSTALL = "./bootstrap install"
_TESTED = {"12": "bookworm", "13": "trixie"}
"""The releases of Debian on which the whole test suite passes (tests/lab), by VERSION_ID of os-release(5)."""


def python_version(name: str, machine: Machine) -> Check:
    """Report Python's version; pip refuses to install into a Python that is too old."""
    return ok(name, f"Python {platform.python_version()}, ghostbox {ghostbox.__version__}")


def kernel(name: str, machine: Machine) -> Check:
    """Report the kernel's version; its features are probed, not derived from the version."""
    system = platform.uname()
    if system.system != "Linux" or system.machine != "x86_64":
        found = f"{system.system} on {system.machine}"
        return fail(name, found, why="GhostBox runs on Linux on x86_64", fix="use such a machine")
    return ok(name, f"Linux {system.release}")


def system(name: str, machine: Machine) -> Check:
    """Check that GhostBox is tested on this distribution."""
    try:
        lines = machine.os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    values = {key: value.strip("\"' ") for key, _, value in (line.partition("=") for line in lines)}
    found = values.get("PRETTY_NAME") or f"no distribution is named in {machine.os_release}"
    tested = ", ".join(f"{number} ({nickname})" for number, nickname in _TESTED.items())
    if values.get("ID") == "debian" and values.get("VERSION_ID") in _TESTED:
        return ok(name, found)
    why = f"GhostBox is tested on Debian {tested}; on others something may be missing"
    if "debian" in (values.get("ID"), *values.get("ID_LIKE", "").split()):
        return warn(name, found, why=why, fix="./bootstrap test runs the whole test suite")
    return warn(name, found, why=why, fix="./bootstrap packages lists what is needed, with unverified names for others")


def programs(name: str, machine: Machine) -> Check:
    """Check that the C programs are installed, run, and are of this command's version."""
    found = machine.paths
    for path in (found.memserver_program, found.pager_program, found.shim_library):
        if not path.is_file():
            why = "the C programs are installed beside the Python package"
            return fail(name, f"{path.name} is missing in {path.parent}", why=why, fix=_REINSTALL)
    for path in (found.memserver_program, found.pager_program):
        try:
            answer = processes.run([path, "--version"], timeout_s=20).strip()
        except GhostboxError as err:
            return fail(name, f"{path.name} does not run", why=err.why or err.message, fix=_REINSTALL)
        if ghostbox.__version__ not in answer.split():
            why = f"this command is version {ghostbox.__version__}"
            return fail(name, f"{path.name} is another version: {answer}", why=why, fix=_REINSTALL)
    return ok(name, f"memserver, pager and shim in {found.native}")


def memory_for_vm(name: str, machine: Machine) -> Check:
    """Check that the VM's local RAM and the cache fit into the memory that is available now."""
    settings = machine.config
    needed_bytes = settings.vm.memory_bytes + settings.pool.cache_bytes
    available_bytes = memory.read_facts(machine.proc).available_bytes
    found = f"{format_bytes(available_bytes)} available"
    if available_bytes < needed_bytes:
        why = (
            f"the VM needs {format_bytes(needed_bytes)} here: {format_bytes(settings.vm.memory_bytes)} (vm.memory)"
            f" and {format_bytes(settings.pool.cache_bytes)} (pool.cache)"
        )
        return warn(name, found, why=why, fix="ghostbox up --memory 1G --cache 256M, or set both in ghostbox.yaml")
    return ok(name, f"{found}, the VM needs {format_bytes(needed_bytes)}")


def memory_to_lend(name: str, machine: Machine) -> Check:
    """Check that the memory which `ghostbox memserver` is to lend is available."""
    settings = machine.config.memserver
    facts = memory.read_facts(machine.proc)
    found = f"{format_bytes(facts.available_bytes)} of {format_bytes(facts.total_bytes)} available"
    try:
        lent_bytes = memory.size_to_lend(settings.size, settings.reserve_bytes, facts)
    except GhostboxError as err:
        return fail(name, found, why=err.message, fix=err.hint)
    return ok(name, f"{found}, {format_bytes(lent_bytes)} could be lent")


def hugepages(name: str, machine: Machine) -> Check:
    """Check for reserved huge pages: neither the VM nor the cache can use that memory."""
    values = _meminfo(machine.proc)
    reserved_bytes = values.get("HugePages_Free", 0) * values.get("Hugepagesize", 0)
    if reserved_bytes:
        why = "GhostBox uses 4 KiB pages for remote memory; reserved huge pages stay unused"
        found = f"{format_bytes(reserved_bytes)} reserved as huge pages"
        return warn(name, found, why=why, fix="sudo sysctl vm.nr_hugepages=0, unless another program needs them")
    return ok(name, "none reserved")


def swap(name: str, machine: Machine) -> Check:
    """Check for swap: on a host or donor it moves RAM that others rely on to a disk."""
    total_bytes = _meminfo(machine.proc).get("SwapTotal", 0)
    if total_bytes:
        why = "memory that is lent, or that caches what is lent, may be swapped to disk: slower than the network"
        return warn(name, f"{format_bytes(total_bytes)} of swap", why=why, fix="sudo swapoff -a, or vm.swappiness=1")
    return ok(name, "none")


def nbd_port(name: str, machine: Machine) -> Check:
    """Check that the data plane's port is free."""
    return _port(name, machine.config.memserver.bind, machine.config.memserver.port, "memserver.port")


def control_port(name: str, machine: Machine) -> Check:
    """Check that the control API's port is free."""
    return _port(name, machine.config.memserver.bind, machine.config.memserver.control_port, "memserver.control_port")


def _port(name: str, bind: str, port: int, key: str) -> Check:
    where = f"{bind} port {port}"
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((bind.strip("[]"), port))
    except PermissionError:
        return fail(
            name, f"{where}: permission denied", why="ports below 1024 are for root", fix=f"set {key} above 1023"
        )
    except OSError as err:
        why = f"{os.strerror(err.errno or 0)}; a memserver that runs here already is one reason"
        fix = f"ss -ltnp 'sport = :{port}' shows the program that listens; or choose another {key}"
        return fail(name, f"{where} cannot be listened on", why=why, fix=fix)
    return ok(name, f"{where} is free")


def _meminfo(proc: Path) -> dict[str, int]:
    """Return /proc/meminfo in bytes; counters without a unit are returned unchanged."""
    values = {}
    for line in (proc / "meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        values[key] = parse_bytes(words[0] + "K") if words[1:] == ["kB"] else int(words[0])
    return values
