# SPDX-License-Identifier: MIT
"""Keep the keys of a VM's leases in a file, for its pager: a line ``EXPORT:HEX`` for each (docs/reference/pager.md).

A key is in no other file, and on no command line: the pager gets the path of this file. A key is written before the
pager hears of the export, and goes with the lease. Callers hold the VM's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ghostbox.donors.client import Lease
from ghostbox.errors import GhostboxError, hint_for
from ghostbox.paths import VmPaths
from ghostbox.system import state_files


def add(files: VmPaths, leases: Iterable[Lease]) -> None:
    """Write the keys of new leases, those that have one.

    Raises:
        GhostboxError: the file cannot be written.
    """
    new = {lease.export: lease.tls_psk for lease in leases if lease.tls_psk is not None}
    if new:
        kept = [line for line in _lines(files.lease_keys) if _export(line) not in new]
        _write(files.lease_keys, [*kept, *(f"{export}:{key}" for export, key in new.items())])


def keep(files: VmPaths, exports: Iterable[str]) -> None:
    """Remove all keys but those of these exports. A file without keys is removed.

    Raises:
        GhostboxError: the file cannot be written.
    """
    before, wanted = _lines(files.lease_keys), set(exports)
    kept = [line for line in before if _export(line) in wanted]
    if kept != before or (not kept and files.lease_keys.exists()):
        _write(files.lease_keys, kept)


def _export(line: str) -> str:
    return line.rpartition(":")[0]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not ASCII text"
        raise GhostboxError(f"cannot read the keys of the leases, {file}: {reason}") from err


def _write(file: Path, lines: Sequence[str]) -> None:
    try:
        if not lines:
            file.unlink(missing_ok=True)
            return
        state_files.replace(file, "".join(f"{line}\n" for line in lines).encode())
    except OSError as err:
        raise GhostboxError(f"cannot write the keys of the leases, {file}: {err.strerror}", hint=hint_for(err)) from err
