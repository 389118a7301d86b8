# SPDX-License-Identifier: MIT
"""The shim is copied to where QEMU's loader can read it; impossible places are refused before QEMU starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostbox.errors import Refused
from ghostbox.paths import Paths
from ghostbox.session import shim_copy
from helpers import limits


def paths_in(state: Path, runtime: Path, native: Path) -> Paths:
    (native / "libghostbox-shim.so").write_bytes(b"shim")
    return Paths(state, runtime, native, native, native)


def test_the_state_directory_is_taken_if_it_will_do(tmp_path: Path) -> None:
    found = shim_copy.place(paths_in(tmp_path / "s", tmp_path / "r", tmp_path), "work")
    assert found.parent == tmp_path / "s" / "vms" / "work"
    assert found.name.startswith("libghostbox-shim-") and found.suffix == ".so"


@pytest.mark.parametrize("name", ["a b", "a:b", "$LIB"])
def test_a_name_that_ld_preload_cannot_have_moves_the_copy_to_the_runtime_directory(tmp_path: Path, name: str) -> None:
    found = shim_copy.place(paths_in(tmp_path / name, tmp_path / "r", tmp_path), "work")
    assert found.parent == tmp_path / "r" / "vms" / "work"


def test_where_neither_will_do_each_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    with limits.tmpfs(tmp_path / "n", "noexec"):
        with pytest.raises(Refused, match="there is no directory from which QEMU could load the shim") as caught:
            shim_copy.place(paths_in(tmp_path / "a b", tmp_path / "n" / "run", tmp_path), "work")
        found = shim_copy.place(paths_in(tmp_path / "n" / "state", tmp_path / "r", tmp_path), "work")
    assert found.parent == tmp_path / "r" / "vms" / "work", "noexec moves it, too"
    assert f"{tmp_path}/a b/vms/work: its name has a space, which LD_PRELOAD cannot express" in str(caught.value.why)
    assert f"{tmp_path}/n/run/vms/work: its file system is mounted noexec" in str(caught.value.why)
    assert "set GHOSTBOX_STATE_DIR" in str(caught.value.hint)
