# SPDX-License-Identifier: MIT
"""Find out whether KVM runs a guest here, by running one.

It is not enough that /dev/kvm opens: nested and emulated KVMs exist that accept every ioctl, but never get a guest
through the switch to 64-bit mode (QEMU then spins in the kernel). So a ROM of a few bytes takes the first steps of
every x86-64 kernel: real mode, page tables, long mode, one 64-bit store and load; then it ends QEMU with a status of
its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostbox import paths
from ghostbox.errors import DeadlineExceeded, ProgramError
from ghostbox.system import process_table, processes
from ghostbox.system.hypervisor.accounts import Account, qemu_user

KVM_DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
_PROBE_TIMEOUT_S = 30.0
_PROBE_CPU_S = 4
_ROM_BYTES = 64 * 1024
_RESET_OFFSET = 0xFFF0
# The ROM writes 0x2a to isa-debug-exit, which makes QEMU exit with (0x2a << 1) | 1.
_EXIT_STATUS = 85

# The code is mapped at 0xf0000. Each line has the bytes, then the instruction.
_CODE = """
fa fc                       cli; cld
66 31 c0                    xor  eax, eax
8e c0                       mov  es, ax
bf 00 10                    mov  di, 0x1000
b9 00 0c                    mov  cx, 0xc00
66 f3 ab                    rep stosd                       three empty page tables at 0x1000
26 66 c7 06 00 10 03 20 00 00   mov dword es:[0x1000], 0x2003   level 4 -> 0x2000
26 66 c7 06 00 20 03 30 00 00   mov dword es:[0x2000], 0x3003   level 3 -> 0x3000
26 66 c7 06 00 30 83 00 00 00   mov dword es:[0x3000], 0x83     0 … 2 MiB, identity
2e 66 0f 01 16 a8 00        lgdt cs:[0xa8]
66 b8 00 10 00 00           mov  eax, 0x1000
0f 22 d8                    mov  cr3, eax
66 b8 a0 00 00 00           mov  eax, 0xa0                  PAE, PGE
0f 22 e0                    mov  cr4, eax
66 b9 80 00 00 c0           mov  ecx, 0xc0000080            EFER
0f 32                       rdmsr
66 0d 00 01 00 00           or   eax, 0x100                 LME
0f 30                       wrmsr
66 b8 11 00 00 80           mov  eax, 0x80000011            PG, ET, PE
0f 22 c0                    mov  cr0, eax
66 ea 68 00 0f 00 08 00     jmp  8:0xf0068                  from here on 64-bit code
48 b8 f0 de bc 9a 78 56 34 12   mov rax, 0x123456789abcdef0
48 89 04 25 00 40 00 00     mov  [0x4000], rax
48 3b 04 25 00 40 00 00     cmp  rax, [0x4000]
75 07                       jne  hang
b0 2a                       mov  al, 0x2a
66 ba f4 00                 mov  dx, 0xf4
ee                          out  dx, al
f4                          hang: hlt
eb fd                       jmp  hang
"""
_GDT_OFFSET = 0x98
_GDT = bytes(8) + bytes.fromhex("ffff0000009aaf00")  # null; 64-bit code
_GDT_POINTER_OFFSET = 0xA8
_RESET_VECTOR = bytes.fromhex("ea000000f0")  # jmp 0xf000:0


@dataclass(frozen=True)
class Verdict:
    """Holds the result of a probe. ``lasting``: the same KVM and QEMU would give it again on any later probe."""

    usable: bool
    reason: str
    lasting: bool


@dataclass(frozen=True)
class _Kept:
    """Holds a lasting verdict, and its circumstances: another boot, kvm module or QEMU may give another verdict."""

    made_with: list[int | str]
    usable: bool
    reason: str


def kvm_usable(uri: str = "qemu:///system", *, anew: bool = False) -> tuple[bool, str]:
    """Tell whether a KVM guest runs here, and the reason.

    A lasting verdict is kept as long as boot, device and QEMU are the same; other results are probed anew each time,
    which takes a moment, and permissions are checked each time. ``anew``: probe also if a verdict is kept.
    """
    obstacle = access_problem(qemu_user(uri))
    if obstacle is not None:
        return False, obstacle
    cache = paths.find().runtime / "kvm.json"
    made_with = _circumstances()
    known = None if anew else _read_cache(cache)
    if known is not None and made_with is not None and known.made_with == made_with:
        return known.usable, known.reason
    found = probe("kvm")
    if found.lasting and made_with is not None:
        _write_cache(cache, _Kept(made_with, found.usable, found.reason))
    else:
        _remove_cache(cache)
    return found.usable, found.reason


def _circumstances() -> list[int | str] | None:
    """Return what a lasting verdict depends on; None if that cannot be read.

    The device node is made anew when the kvm module is loaded, so it is one of the circumstances.
    """
    program = processes.which(QEMU)
    try:
        device = KVM_DEVICE.stat()
        qemu = None if program is None else Path(program).stat()
    except OSError:
        return None
    if qemu is None:
        return None
    return [process_table.boot_id(), device.st_ino, device.st_ctime_ns, qemu.st_ino, qemu.st_size, qemu.st_mtime_ns]


def access_problem(account: Account, device: Path = KVM_DEVICE) -> str | None:
    """Return why this user, or the account that QEMU runs under, may not open ``device``; None if both may."""
    if not device.exists():
        return f"{device} does not exist: no hardware virtualisation, or the kvm module is not loaded"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return f"cannot open {device}: permission denied"
    except OSError as err:
        return f"cannot open {device}: {err.strerror}"
    status = device.stat()
    bits = status.st_mode & 0o6
    if status.st_gid in account.groups:
        bits = status.st_mode >> 3 & 0o6
    if status.st_uid == account.uid:
        bits = status.st_mode >> 6 & 0o6
    if account.uid != 0 and bits != 0o6:
        return f"user {account.name}, which QEMU runs as, may not open {device}"
    return None


def probe(accelerator: str, *, timeout_s: float = _PROBE_TIMEOUT_S, cpu_s: int = _PROBE_CPU_S) -> Verdict:
    """Run the probe guest under ``accelerator`` (``kvm`` or ``tcg``).

    A guest that hangs is recognized by its processor time (``cpu_s``), not by the clock: if a busy machine does not let
    the guest run until ``timeout_s``, nothing is known of KVM.
    """
    with tempfile.TemporaryDirectory(prefix="ghostbox-kvm-") as directory:
        rom = Path(directory) / "rom"
        rom.write_bytes(_rom())
        try:
            processes.run(_argv(accelerator, rom, cpu_s), timeout_s=timeout_s)
        except DeadlineExceeded:
            text = (
                f"a probe guest did not end within {timeout_s:.0f} s: this machine is too busy, or KVM does not run it"
            )
            return Verdict(False, text, lasting=False)
        except ProgramError as err:
            return _verdict(err, accelerator)
    text = f"a 64-bit guest does not run: it crashed before it could report ({accelerator})"
    return Verdict(False, text, lasting=False)


def _verdict(err: ProgramError, accelerator: str) -> Verdict:
    if err.message.endswith(f"status {_EXIT_STATUS}"):
        return Verdict(True, "a 64-bit probe guest ran", lasting=True)
    if err.message.endswith(f"status {-signal.SIGXCPU}"):
        text = f"a 64-bit guest does not run: it hung in the switch to 64-bit mode ({accelerator})"
        return Verdict(False, text, lasting=True)
    why = (err.why or err.message).splitlines()[0]
    if os.strerror(errno.EBUSY) in why:
        why += " (another hypervisor uses the processor's virtualisation, such as VirtualBox or VMware)"
    return Verdict(False, f"a probe guest failed: {why}", lasting=False)


def _argv(accelerator: str, rom: Path, cpu_s: int) -> Sequence[str | Path]:
    machine = ["-accel", accelerator, "-cpu", "max", "-machine", "q35", "-m", "16", "-nodefaults", "-no-reboot"]
    words: list[str | Path] = [
        *machine,
        "-display",
        "none",
        "-bios",
        rom,
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=1",
    ]
    # At the soft limit of processor time, SIGXCPU ends QEMU (setrlimit(2)).
    limited = 'ulimit -S -c 0; ulimit -S -t "$1"; shift; exec "$@"'
    return ["sh", "-c", limited, "sh", str(cpu_s), processes.which(QEMU) or QEMU, *words]


def _rom() -> bytes:
    """Return the ROM; its unused rest is ``hlt``."""
    code = b"".join(_line_bytes(line) for line in _CODE.strip().splitlines())
    rom = bytearray(b"\xf4" * _ROM_BYTES)
    rom[: len(code)] = code
    rom[_GDT_OFFSET : _GDT_OFFSET + len(_GDT)] = _GDT
    pointer = (len(_GDT) - 1).to_bytes(2, "little") + (0xF0000 + _GDT_OFFSET).to_bytes(4, "little")
    rom[_GDT_POINTER_OFFSET : _GDT_POINTER_OFFSET + len(pointer)] = pointer
    rom[_RESET_OFFSET : _RESET_OFFSET + len(_RESET_VECTOR)] = _RESET_VECTOR
    return bytes(rom)


def _line_bytes(line: str) -> bytes:
    words = line.split("  ", maxsplit=1)[0].split()
    return bytes(int(word, 16) for word in words)


def _read_cache(cache: Path) -> _Kept | None:
    try:
        return _Kept(**json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _remove_cache(cache: Path) -> None:
    with contextlib.suppress(OSError):
        cache.unlink(missing_ok=True)


def _write_cache(cache: Path, verdict: _Kept) -> None:
    """Keep the verdict; in a directory that this user may not write, only the next probe is not saved."""
    try:
        paths.make_directory(cache.parent)
        cache.write_text(json.dumps(asdict(verdict)))
    except OSError:
        return


def problem_hint(reason: str) -> str | None:
    """Return the command that mends the reason of `kvm_usable`; None if no command on this machine does."""
    if "permission denied" in reason:
        return "sudo usermod -aG kvm $USER, then log in again"
    if "QEMU runs as" in reason:
        return f"sudo chgrp kvm {KVM_DEVICE} && sudo chmod 660 {KVM_DEVICE}"
    return None
