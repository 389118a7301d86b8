# SPDX-License-Identifier: MIT
"""Another user of the machine gets no answer from control sockets, and cannot read GhostBox's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.system import processes
from helpers.devices import need_device
from helpers.donor import running_donor
from helpers.other_user import NOBODY, as_user
from helpers.pager import running_memserver, running_pager

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user")


@contextmanager
def _opened_to_all(control: Path) -> Iterator[Path]:
    """Let every user reach a socket, as an administrator might do by mistake."""
    control.parent.chmod(0o755)
    control.chmod(0o666)
    yield control


def _check_refused(control: Path) -> None:
    def ask() -> tuple[str, str]:
        try:
            processes.control_request(control, "status")
        except processes.ControlError as err:
            return err.code, str(err)
        return "", "answered"

    assert as_user(ask) == (
        "denied",
        f"user id {NOBODY} may not use this control socket: it is for user id 0 and root",
    )
    assert processes.control_request(control, "status")["pid"] > 0


@needs_root
def test_another_user_is_refused_by_the_memory_server() -> None:
    with running_memserver(a="1M") as donor, _opened_to_all(donor.control) as control:
        _check_refused(control)


@needs_root
def test_another_user_is_refused_by_the_pager() -> None:
    need_device("/dev/userfaultfd")
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M") as pager,
        _opened_to_all(pager.control) as control,
    ):
        _check_refused(control)
        assert f"control client refused: user id {NOBODY}, process " in pager.log()


@needs_root
def test_what_a_donor_keeps_and_its_sockets_are_its_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    with running_donor(tmp_path, prefix=("sh", "-c", 'umask 0; exec "$@"', "sh")) as donor:
        with DonorClient(donor.address) as client:
            client.create_lease("one", 1 << 20, Holder("tower", "ana"))
        places = [*donor.state_dir.rglob("*"), *donor.control_socket.parent.rglob("*")]
        modes = {place.name: stat.S_IMODE(place.lstat().st_mode) for place in places}
        assert {"leases.json", "identity.json", "lock", "memserver.log", "control.sock"} <= set(modes)
        assert not {name: oct(mode) for name, mode in modes.items() if mode & 0o077}
        assert stat.S_IMODE(donor.state_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(donor.control_socket.parent.stat().st_mode) == 0o700
