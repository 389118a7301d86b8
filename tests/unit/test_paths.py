# SPDX-License-Identifier: MIT
"""Where things are kept, for root and for others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ghostbox import paths


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user whose login made no session."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home-of/ana")
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_root_uses_the_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = paths.find()
    assert (found.state, found.runtime) == (Path("/var/lib/ghostbox"), Path("/run/ghostbox"))
    assert found.images == Path("/var/cache/ghostbox/images")


def test_a_user_uses_the_xdg_directories(as_user: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    found = paths.find()
    assert found.state == Path("/home-of/ana/.local/state/ghostbox")
    assert found.runtime == Path("/run/user/1000/ghostbox")
    assert found.cache == Path("/home-of/ana/.cache/ghostbox")


@pytest.mark.filterwarnings("error")
def test_without_a_login_session_sockets_lie_beside_the_state_and_not_in_tmp(as_user: None) -> None:
    assert paths.find().runtime == Path("/home-of/ana/.local/state/ghostbox/run")


@pytest.mark.parametrize("kind", ["state", "runtime", "cache", "native"])
def test_each_directory_can_be_moved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GHOSTBOX_{kind.upper()}_DIR", "/elsewhere")
    assert getattr(paths.find(), kind) == Path("/elsewhere")


def test_vms_and_memservers_have_directories_of_their_own() -> None:
    found = paths.find()
    assert found.vm("a").state != found.vm("b").state
    assert found.vm("a").pager_socket.parent == found.vm("a").pager_control.parent == found.runtime / "vms/a"
    assert found.memserver_state("t").parent.name == "memservers"


def test_the_reference_configuration_is_shipped() -> None:
    assert paths.data_file("config.yaml").is_file()
