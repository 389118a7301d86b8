# SPDX-License-Identifier: MIT
"""An imported disk is booted by the firmware: here one of 512 bytes, which says a word on the serial line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostbox import processes
from helpers.donor import running_donor
from helpers.lab import lab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

VM = "gbt-firmware"
WORD = b"booted by firmware\r\n"
# At 0x7c00: mov si, 0x7c20; next: lodsb; test al, al; jz stop; mov dx, 0x3f8; out dx, al; jmp next;
# stop: hlt; jmp stop
CODE = bytes.fromhex("be207c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")


def boot_disk(path: Path) -> Path:
    sector = bytearray(512)
    sector[: len(CODE)] = CODE
    sector[0x20 : 0x20 + len(WORD)] = WORD
    sector[510:] = b"\x55\xaa"
    path.write_bytes(bytes(sector) + bytes((1 << 20) - 512))
    return path


def test_imported_image_boots_and_may_be_deleted_when_no_vm_stands_on_it(tmp_path: Path) -> None:
    with lab() as host, running_donor(tmp_path, size="128M") as donor:
        private = host.root / "own-cache"
        env = {**host.env, "GHOSTBOX_CACHE_DIR": str(private)}
        own = type(host)(host.root, env)
        own.cli("image", "import", boot_disk(tmp_path / "mini.raw"), "--name", "mini", check=True)
        sizes = ["--memory", "256M", "--remote-memory", "128M", "--cache", "16M", "--disk", "1G"]
        own.cli("up", VM, *sizes, "--image", "mini", "--donor", donor.address, "--no-wait", check=True)
        word = WORD.decode().strip()
        processes.wait_until(lambda: word in own.cli("logs", VM).stdout, timeout_s=60, what="the boot sector's word")
        refused = own.cli("image", "delete", "mini", "-y")
        assert "error: image 'mini' is the base of a VM's disk" in refused.stderr
        own.cli("delete", VM, "-y", "--force", check=True)
        own.cli("image", "delete", "mini", "-y", check=True)
