# SPDX-License-Identifier: MIT
"""The firmware boots an imported disk: here a disk of 512 bytes, which prints to the serial port."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghostbox.system import processes
from helpers.donor import running_donor
from helpers.lab import Host, lab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

VM = "gbt-firmware"
WORD = b"booted by firmware\r\n"
STALL = b"rcu: rcu_preempt kthread timer wakeup didn't happen for 5250 jiffies!\r\n"
# At 0x7c00: mov si, 0x7c20; next: lodsb; test al, al; jz stop; mov dx, 0x3f8; out dx, al; jmp next;
# stop: hlt; jmp stop
CODE = bytes.fromhex("be207c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")


def boot_disk(path: Path, says: bytes) -> Path:
    sector = bytearray(512)
    sector[: len(CODE)] = CODE
    sector[0x20 : 0x20 + len(says)] = says
    sector[510:] = b"\x55\xaa"
    path.write_bytes(bytes(sector) + bytes((1 << 20) - 512))
    return path


@contextmanager
def imported(tmp_path: Path, says: bytes) -> Iterator[tuple[Host, list[str]]]:
    """Yield a host with the image ``mini``, which prints, and the options of a VM of it."""
    with lab() as host, running_donor(tmp_path, size="128M") as donor:
        own = Host(host.root, {**host.env, "GHOSTBOX_CACHE_DIR": str(host.root / "own-cache")})
        own.cli("image", "import", boot_disk(tmp_path / "mini.raw", says), "--name", "mini", check=True)
        sizes = ["--memory", "256M", "--remote-memory", "128M", "--cache", "16M", "--disk", "1G"]
        yield own, [*sizes, "--image", "mini", "--donor", donor.address]


def test_imported_image_boots_and_may_be_deleted_when_no_vm_stands_on_it(tmp_path: Path) -> None:
    with imported(tmp_path, WORD) as (host, options):
        host.cli("up", VM, *options, "--no-wait", check=True)
        word = WORD.decode().strip()
        processes.wait_until(lambda: word in host.cli("logs", VM).stdout, timeout_s=60, what="the boot sector's word")
        refused = host.cli("image", "delete", "mini", "-y")
        assert "error: image 'mini' is the base of a VM's disk" in refused.stderr
        host.cli("delete", VM, "-y", "--force", check=True)
        host.cli("image", "delete", "mini", "-y", check=True)


def test_emulated_guest_that_hangs_while_it_boots_is_reset_once(tmp_path: Path) -> None:
    """The disk prints what a kernel prints whose timer was lost, and stops; after a reset it does so again."""
    with imported(tmp_path, STALL + STALL) as (host, options):
        done = host.cli("up", VM, *options, "--timeout", "10s")
        assert "the guest's SSH server does not answer" in done.stderr
        emulated = json.loads(host.cli("status", VM, "--json").stdout)["virt"] == "tcg"
        reset = "the guest's kernel hangs, as happens now and then without KVM: the VM is reset"
        assert (reset in done.stderr) == emulated
        n_boots = 2 if emulated else 1
        assert host.cli("logs", VM).stdout.count(STALL.decode().strip()) == 2 * n_boots
        host.cli("delete", VM, "-y", "--force", check=True)


def qemu_whose_guest_boots(host: Host, but: int = 0) -> int:
    """Wait until a QEMU other than ``but`` runs, and its boot sector has printed; return its process id."""
    found: list[int] = []

    def boots() -> bool:
        lines = [line for line in host.belongings().processes if "qemu-system" in line]
        found[:] = [int(line.split()[0]) for line in lines if not line.startswith(f"{but} ")]
        return len(found) == 1 and WORD.decode().strip() in host.cli("logs", VM).stdout

    processes.wait_until(boots, timeout_s=60, what="the boot sector's word")
    return found[0]


def test_qemu_that_crashes_while_the_guest_boots_is_started_again_once_and_then_named(tmp_path: Path) -> None:
    with imported(tmp_path, WORD) as (host, options):
        running = host.start("up", VM, *options)
        first = qemu_whose_guest_boots(host)
        emulated = json.loads(host.cli("status", VM, "--json").stdout)["virt"] == "tcg"
        os.kill(first, signal.SIGSEGV)
        if emulated:
            os.kill(qemu_whose_guest_boots(host, but=first), signal.SIGSEGV)
        again = "QEMU crashed while the guest booted, as happens now and then without KVM: the VM is started again"
        _, said = running.communicate(timeout=60)
        assert running.returncode == 1
        assert (again in said) == emulated
        assert f"error: VM '{VM}', stage boot: QEMU crashed while the guest booted" in said
        assert f"fix: start it again: ghostbox up {VM}; what QEMU said: ghostbox logs {VM} --source qemu" in said
        assert "reason=crashed" in host.cli("logs", VM, "--source", "qemu", check=True).stdout
        host.cli("up", VM, "--no-wait", check=True)
        host.cli("delete", VM, "-y", "--force", check=True)
