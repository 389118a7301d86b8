# SPDX-License-Identifier: MIT
"""A bundle has all that a donor needs, and the agent unpacks it whole or not at all."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from ghostbox import paths
from ghostbox.deploy import agent, bundle, wheels
from ghostbox.deploy.bundle import Bundle
from ghostbox.errors import ConfigError, GhostboxError

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    places = paths.find()
    return bundle.make(PYTHON, paths.Paths(**{**vars(places), "cache": tmp_path_factory.mktemp("cache")}))


def names(made: Bundle) -> list[str]:
    with tarfile.open(made.path) as archive:
        return archive.getnames()


def test_the_packages_are_those_that_a_donor_imports() -> None:
    found = {canonicalize_name(each.name) for each in wheels.needed(PYTHON)}
    assert {"click", "fastapi", "pydantic-core", "uvicorn", "zeroconf", "cryptography", "anyio"} <= found
    assert not found & {"ghostbox", "libvirt-python", "numpy", "paramiko", "pytest", "ruff", "pip"}


def test_a_bundle_has_wheels_and_libraries_and_says_what_it_needs(made: Bundle) -> None:
    found = names(made)
    assert len(found) == made.members
    assert any(re.fullmatch(r"wheels/ghostbox-[\d.]+-py3-none-linux_\w+\.whl", name) for name in found)
    assert "libraries/libgnutls.so.30" in found
    assert not [name for name in found if name.startswith("libraries/libc.")]
    assert made.needs.glibc >= (2, 17)
    assert made.needs.packed_bytes < made.needs.unpacked_bytes
    with tarfile.open(made.path) as archive:
        own = next(name for name in found if "/ghostbox-" in name)
        stream = archive.extractfile(own)
        assert stream is not None
        with zipfile.ZipFile(io.BytesIO(stream.read())) as wheel:
            inside = wheel.namelist()
    assert {"ghostbox/native/ghostbox-memserver", "ghostbox/deploy/facts.sh", "ghostbox/data/config.yaml"} <= set(
        inside
    )
    assert not [name for name in inside if "pager" in Path(name).name and "native" in name]


def test_a_bundle_is_made_once(made: Bundle) -> None:
    before = made.path.stat()
    places = paths.Paths(**{**vars(paths.find()), "cache": made.path.parent.parent})
    again = bundle.make(PYTHON, places)
    assert (again.path, again.path.stat().st_ino) == (made.path, before.st_ino)
    assert again.needs == made.needs


class Asking(Distribution):
    """This project, with requirements of the test's."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def read_text(self, filename: str) -> str | None:
        said = ["Name: ghostbox", "Version: 1", *(f"Requires-Dist: {line}" for line in self.lines)]
        return "\n".join(said) if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("line", "python", "packages"),
    [
        ("Click [none] >= 1.0 ; extra == 'donor'", PYTHON, ["click"]),
        ("click ; extra == 'host'", PYTHON, []),
        ("click ; python_version < '3'", PYTHON, []),
        ("click ; python_version >= '3.99'", PYTHON, []),
        ("click ; python_version >= '3.99'", "3.99", ["click"]),
        ("not-installed-here ; python_version >= '3.99'", "3.99", []),
        ("click ; sys_platform == 'linux' and (extra == 'donor' or extra == 'host')", PYTHON, ["click"]),
    ],
)
def test_a_requirement_counts_here_or_on_the_donor(
    monkeypatch: pytest.MonkeyPatch, line: str, python: str, packages: list[str]
) -> None:
    monkeypatch.setattr(wheels, "distribution", lambda name: Asking(line) if name == "ghostbox" else distribution(name))
    assert [each.name for each in wheels.needed(python)] == packages


def test_a_package_that_is_no_wheel_is_named(tmp_path: Path) -> None:
    class Bare(Distribution):
        def read_text(self, filename: str) -> str | None:
            return "Name: odd\nVersion: 1\n" if filename == "METADATA" else None

        def locate_file(self, path: Any) -> Any:
            return tmp_path / path

    with pytest.raises(GhostboxError, match="the Python package odd was not installed from a wheel"):
        wheels.pack([Bare()], tmp_path)


def test_wheels_are_wheels(tmp_path: Path) -> None:
    wheels.pack([distribution("click")], tmp_path)
    [file] = tmp_path.iterdir()
    with zipfile.ZipFile(file) as wheel:
        record = next(name for name in wheel.namelist() if name.endswith("/RECORD"))
        listed = {line.split(",")[0] for line in wheel.read(record).decode().splitlines()}
        assert listed == set(wheel.namelist())
        assert not [name for name in listed if name.endswith((".pyc", "INSTALLER"))]


def request(prefix: Path, action: str, **more: object) -> dict[str, object]:
    places = {"runtime": str(prefix / "run"), "link": str(prefix.parent / "bin/ghostbox")}
    return {"action": action, "prefix": str(prefix), **places, "version": "1", **more}


def act(prefix: Path, action: str, stream: bytes = b"", **more: object) -> dict[str, Any]:
    return agent.run(json.dumps(request(prefix, action, **more)), io.BytesIO(stream))


def test_the_agent_installs_switches_tidies_and_removes(made: Bundle, tmp_path: Path) -> None:
    prefix = tmp_path / "deep/er/ghostbox"
    content = made.path.read_bytes()
    assert act(prefix, "install", content, members=made.members) == {"done": {"installed": "1"}}
    assert act(prefix, "switch", arguments=["attic", "--size", "1G"]) == {"done": {"current": "1"}}
    assert (prefix / "arguments").read_text() == "attic\n--size\n1G\n"
    assert (tmp_path / "deep/er/bin/ghostbox").readlink() == prefix / "bin/ghostbox"
    (prefix / "versions/0").mkdir()
    assert act(prefix, "tidy") == {"done": {"removed": ["0"]}}
    assert act(prefix, "remove") == {"done": {"removed": str(prefix)}}
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_cut_off_anywhere_leaves_nothing(made: Bundle, tmp_path: Path) -> None:
    content = made.path.read_bytes()
    with tarfile.open(made.path) as archive:
        borders = [member.offset for member in archive]
    cuts = [0, 1, 511, *borders[1:4], borders[2] + 700, len(content) // 2, borders[-1], borders[-1] + 512 + 10]
    for cut in cuts:
        answer = act(tmp_path / "opt/ghostbox", "install", content[:cut], members=made.members)
        assert answer["failed"] == "the copy is incomplete: the connection was cut half-way", f"cut at {cut}"
        assert list(tmp_path.iterdir()) == []


def test_the_agent_touches_only_what_it_has_made(tmp_path: Path) -> None:
    prefix = tmp_path / "ghostbox"
    prefix.mkdir()
    (prefix / "file").write_text("mine")
    assert act(prefix, "install", members=0)["failed"].endswith("exists, and `ghostbox donor deploy` has not made it")
    for action in ("switch", "tidy", "remove"):
        assert act(prefix, action, arguments=[])["failed"].endswith("was not made by `ghostbox donor deploy`")
    assert (prefix / "file").read_text() == "mine"


def test_another_command_on_the_path_stays(made: Bundle, tmp_path: Path) -> None:
    prefix, link = tmp_path / "opt/ghostbox", tmp_path / "opt/bin/ghostbox"
    link.parent.mkdir(parents=True)
    link.write_text("another")
    act(prefix, "install", made.path.read_bytes(), members=made.members)
    act(prefix, "switch", arguments=["attic"])
    act(prefix, "remove")
    assert link.read_text() == "another"


def test_a_wheel_writes_nowhere_else(tmp_path: Path) -> None:
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as wheel:
        wheel.writestr("../outside", "x")
        wheel.writestr("a/../../outside", "x")
        wheel.writestr("/outside", "x")
        wheel.writestr("inside", "x")
    site = tmp_path / "site"
    site.mkdir()
    agent._unpack_wheel(evil.getvalue(), site)
    assert [path.name for path in tmp_path.rglob("*")] == ["site", "inside"]


@pytest.mark.parametrize(
    ("content", "needed"),
    [(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0", (2, 34)), (b"nothing", (2, 0)), (b"GLIBC_2.34x\0", (2, 0))],
)
def test_the_needed_c_library_is_read_from_the_programs(content: bytes, needed: tuple[int, int]) -> None:
    assert bundle.needed_glibc(content) == needed


def tar_of(program: str) -> tuple[bytes, int]:
    """Return a bundle of one wheel that has no more than a program."""
    content = io.BytesIO()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        entry = zipfile.ZipInfo("ghostbox/native/ghostbox-memserver")
        entry.external_attr = 0o100755 << 16
        archive.writestr(entry, program)
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("wheels/ghostbox-1-py3-none-any.whl")
        member.size = len(wheel.getvalue())
        tar.addfile(member, io.BytesIO(wheel.getvalue()))
    return content.getvalue(), 1


@pytest.mark.parametrize(
    ("program", "text", "why"),
    [
        ("#!/bin/sh\necho no such library >&2; exit 127", "the memory server does not run on this machine", "no such"),
        ("#!/bin/sh\nexit 0", "the Python packages do not work on this machine", "No module named 'ghostbox"),
    ],
)
def test_what_does_not_run_on_the_machine_is_not_installed(tmp_path: Path, program: str, text: str, why: str) -> None:
    content, members = tar_of(program)
    answer = act(tmp_path / "opt/ghostbox", "install", content, members=members)
    assert answer["failed"] == text
    assert why in answer["why"]
    assert list(tmp_path.iterdir()) == []


def test_two_hosts_do_not_change_an_installation_at_a_time(made: Bundle, tmp_path: Path) -> None:
    prefix = tmp_path / "ghostbox"
    act(prefix, "install", made.path.read_bytes(), members=made.members)
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys, fcntl\nstream = open(sys.argv[1], 'w')\n{HOLD}", prefix / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        answer = act(prefix, "switch", arguments=["attic"])
        other.kill()
    assert answer["failed"] == f"another `ghostbox donor deploy` is at work in {prefix}"


HOLD = "fcntl.lockf(stream, fcntl.LOCK_EX)\nprint(1, flush=True)\ninput()"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = paths.Paths(**{**vars(paths.find()), "cache": tmp_path / "file"})
    with pytest.raises(GhostboxError, match=r"cannot make the bundle .*/file/donor-bundles/py.*: Not a directory"):
        bundle.make(PYTHON, places)


def test_a_package_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(name: str) -> Distribution:
        if name == "fastapi":
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(wheels, "distribution", lacks)
    with pytest.raises(GhostboxError, match="this installation lacks the Python package fastapi, which a donor needs"):
        wheels.needed(PYTHON)


def test_a_library_that_this_host_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ldd").write_text("#!/bin/sh\necho '	libgnutls.so.30 => not found'\n")
    (tmp_path / "ldd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = paths.find().memserver_program
    with pytest.raises(ConfigError, match=f"{program} lacks libgnutls.so.30 on this host") as caught:
        bundle._libraries(program)
    assert caught.value.hint == "./bootstrap install"
