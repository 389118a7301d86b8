# SPDX-License-Identifier: MIT
"""Build a 32-bit guest without a kernel, and run it in a QEMU whose node 1 the pager serves.

Node 0 is at 0, node 1 from NODE_BYTES on, both below 4 GiB; the options are those that libvirt gives.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghostbox.system.processes import wait_until
from helpers.pager import Build, RunningPager, client_env, installed_build

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
NODE_BYTES = 72 * MIB  # the firmware keeps a little memory at the end for itself
CHECKED_BYTES = 64 * MIB
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def build_guest(directory: Path) -> Path:
    """Compile the guest and return its image."""
    image = directory / "guest"
    flags = "-m32 -O2 -ffreestanding -nostdlib -static -fno-pic -no-pie -fno-stack-protector -mno-sse -mno-mmx"
    link = "-Wl,-n -Wl,--build-id=none -Wl,--no-warn-rwx-segments -Wl,-T,guest.ld"
    defines = f"-fcf-protection=none -DBASE={NODE_BYTES}u -DBYTES={CHECKED_BYTES}u"
    words = f"gcc {flags} {defines} {link}".split()
    subprocess.run([*words, "-o", str(image.resolve()), "guest.c"], cwd=HERE, check=True, timeout=60)
    return image


def qemu_argv(place: Path, image: Path, accel: str) -> list[str]:
    """Return QEMU's command line."""
    node = f"size={NODE_BYTES}"
    return [
        "qemu-system-x86_64",
        *(
            "-accel",
            accel,
            "-machine",
            "q35",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-sandbox",
            SANDBOX,
        ),
        *("-m", f"size={2 * NODE_BYTES // MIB}M,slots=2,maxmem=1G"),
        *(
            "-object",
            f"memory-backend-memfd,id=ram-node0,share=off,{node}",
            "-numa",
            "node,nodeid=0,cpus=0,memdev=ram-node0",
        ),
        *("-object", f"memory-backend-memfd,id=ram-node1,share=on,{node}", "-numa", "node,nodeid=1,memdev=ram-node1"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon", f"file:{place / 'console'}"),
        *("-qmp", f"unix:{place / 'qmp'},server=on,wait=off", "-kernel", str(image)),
    ]


class Qmp:
    """Is QEMU's monitor, as far as a test needs it."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(30)
        wait_until(lambda: self._connected(path), timeout_s=30, what="QEMU's monitor")
        self._stream = self._sock.makefile("rw")
        self._stream.readline()  # QEMU greets first
        self.command("qmp_capabilities")

    def _connected(self, path: Path) -> bool:
        """Try to connect: the socket's file exists before QEMU listens on it."""
        try:
            self._sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Run a command; return the content of ``return`` or ``error``."""
        self._stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._stream.flush()
        while True:
            answer: dict[str, Any] = json.loads(self._stream.readline())
            if "event" not in answer:
                return answer

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._sock.close()


@contextlib.contextmanager
def running_qemu(
    place: Path, image: Path, accel: str, listen: Path | RunningPager, *extra: str, build: Build | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run QEMU with the shim until the end of the block; its stderr goes to ``place/stderr``."""
    build = build or installed_build()
    listen = listen.listen if isinstance(listen, RunningPager) else listen
    with (place / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*qemu_argv(place, image, accel), *extra], env=client_env(build, listen), stderr=stderr, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def kvm_problem() -> str | None:
    """Return why KVM cannot be used here; None if it can."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as err:
        return f"/dev/kvm: {err.strerror}"
    return None
