# SPDX-License-Identifier: MIT
"""`ghostbox cp` runs the real scp against a server in a guest's place; names of every kind, and every error."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.errors import GuestError, Interrupted, NotFound, UsageError
from ghostbox.paths import Paths
from ghostbox.session import Book, copying
from ghostbox.session.copying import Options, Place
from ghostbox.system import ssh_keys
from helpers.ssh_server import FORBIDDEN, GuestServer, guest_server, started_vm

NAMES = [
    "plain",
    "with space",
    "a:b",
    "-rf",
    "it's",
    'qu"ote',
    "a[1]*?.txt",
    "back\\slash",
    "$HOME",
    "%h",
    "~tilde",
    "ünï",
]


@pytest.fixture
def here(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = ghostbox_dirs / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def guest(tmp_path: Path, here: Path) -> Iterator[tuple[Book, GuestServer]]:
    home = tmp_path / "home"
    home.mkdir()
    files = paths.find().vm("work")
    started_vm(files.state, files.runtime, port=1)
    with guest_server(home, files.host_key, ssh_keys.read_key(files.client_key).public) as server:
        yield started_vm(files.state, files.runtime, server.port), server


def in_guest(path: str) -> Place:
    return Place("work", path)


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("work:a", Place("work", "a")),
        (":a:b c", Place("", "a:b c")),
        ("work:", Place("work", "")),
        ("./a:b", Place(None, "./a:b")),
        ("/x/a:b", Place(None, "/x/a:b")),
        ("plain", Place(None, "plain")),
    ],
)
def test_a_colon_before_any_slash_names_a_vm(word: str, place: Place) -> None:
    assert copying.parse(word) == place


def test_names_of_every_kind_go_there_and_come_back(guest: tuple[Book, GuestServer], here: Path) -> None:
    book, server = guest
    for name in NAMES:
        (here / name).write_text(f"of {name}")
        copying.transfer(book, [Place(None, name)], in_guest(""), Options())
        assert (server.home / name).read_text() == f"of {name}"
        copying.transfer(book, [in_guest(name)], Place(None, f"./back {name}"), Options())
        assert (here / f"back {name}").read_text() == f"of {name}"


def test_a_pattern_takes_the_file_of_that_name_and_no_other(guest: tuple[Book, GuestServer], here: Path) -> None:
    book, server = guest
    (server.home / "a1").write_text("another one")
    (server.home / "a[1]").write_text("this one")
    copying.transfer(book, [in_guest("a[1]")], Place(None, "got"), Options())
    assert (here / "got").read_text() == "this one"


def test_several_files_and_whole_directories(guest: tuple[Book, GuestServer], here: Path) -> None:
    book, server = guest
    (here / "src" / "deep er").mkdir(parents=True)
    (here / "src" / "deep er" / "f").write_text("deep")
    (here / "one").write_text("1")
    (server.home / "to").mkdir()
    copying.transfer(book, [Place(None, "src"), Place(None, "one")], in_guest("to"), Options(recursive=True))
    assert (server.home / "to" / "src" / "deep er" / "f").read_text() == "deep"
    assert (server.home / "to" / "one").read_text() == "1"
    copying.transfer(book, [in_guest("to")], Place(None, "back"), Options(recursive=True))
    assert (here / "back" / "src" / "deep er" / "f").read_text() == "deep"


def test_a_terminal_shows_the_progress_and_nothing_else_does(
    guest: tuple[Book, GuestServer], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    book, _ = guest
    (here / "big").write_bytes(bytes(1 << 20))
    copying.transfer(book, [Place(None, "big")], in_guest("quiet"), Options())
    assert capfd.readouterr() == ("", "")
    pid, terminal = pty.fork()
    if pid == 0:
        copying.transfer(book, [Place(None, "big")], in_guest("shown"), Options())
        os._exit(0)
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:
        pass
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)
    assert b"big" in shown and b"100%" in shown


def copy(here: Paths, *words: str, recursive: bool = False) -> None:
    *sources, target = words
    copying.copy(sources, target, here, lambda name: name or "work", Options(recursive))


@pytest.mark.parametrize(
    ("words", "kind", "message", "hint"),
    [
        (["a", "b"], UsageError, "neither side is in a VM", "ghostbox cp FILE NAME:PATH"),
        (["work:a", "other:b"], UsageError, "both sides are in a VM", "copy it to this machine first"),
        (["work:a", "other:b", "c"], UsageError, "the sources are not all in one place", "one place at a time"),
        (["work:a", "b", "c"], UsageError, "the sources are not all in one place", "one place at a time"),
        (["nothing", "work:"], NotFound, "there is no file nothing", None),
        (["folder", "work:"], UsageError, "folder is a directory", "copy it with all that is in it: -r"),
        (["work:a", "nowhere/x"], NotFound, "there is no directory nowhere", "mkdir -p nowhere"),
        (["work:a", "work:b", "one"], UsageError, "one is no directory, and there are several files", "mkdir -p one"),
        (["a:b", "work:"], NotFound, "no VM named 'a'", None),
        (["c:d", "."], NotFound, "no VM named 'c'", "a file here whose name has a colon is written ./c:d"),
    ],
)  # fmt: skip
def test_what_cannot_be_copied_is_refused_before_anything_is_asked(
    guest: tuple[Book, GuestServer], here: Path, words: list[str], kind: type[Exception], message: str, hint: str | None
) -> None:
    (here / "folder").mkdir()
    (here / "one").write_text("1")
    (here / "c:d").write_text("1")
    if words[0] == "a:b":
        words = ["a:b", "."]
    with pytest.raises(kind, match=message) as caught:
        copy(paths.find(), *words)
    assert (hint or "") in (getattr(caught.value, "hint", None) or "")


@pytest.mark.parametrize(
    ("source", "kind", "message", "hint"),
    [
        ("nothing", NotFound, "VM 'work' has no such file or directory", "ghostbox shell work ls -la"),
        ("folder", UsageError, "it is a directory", "-r"),
    ],
)
def test_what_the_guest_lacks_is_said(
    guest: tuple[Book, GuestServer], here: Path, source: str, kind: type[Exception], message: str, hint: str
) -> None:
    book, server = guest
    (server.home / "folder").mkdir()
    with pytest.raises(kind, match=message) as caught:
        copying.transfer(book, [in_guest(source)], Place(None, "."), Options())
    assert source in str(getattr(caught.value, "why", None))
    assert hint in str(getattr(caught.value, "hint", None))


def test_a_directory_that_may_not_be_written_is_said(guest: tuple[Book, GuestServer], here: Path) -> None:
    book, _ = guest
    (here / "one").write_text("1")
    with pytest.raises(GuestError, match="VM 'work': permission denied") as caught:
        copying.transfer(book, [Place(None, "one")], in_guest(FORBIDDEN), Options())
    assert FORBIDDEN in str(caught.value.why)
    assert caught.value.hint == "the guest's user is ana: copy to :/tmp, then ghostbox shell work sudo mv …"


def test_a_guest_that_boots_is_said(guest: tuple[Book, GuestServer], here: Path) -> None:
    book, server = guest
    server.close()
    (here / "one").write_text("1")
    with pytest.raises(GuestError, match="VM 'work' still boots"):
        copying.transfer(book, [Place(None, "one")], in_guest(""), Options())


def test_a_guest_that_is_gone_is_said(guest: tuple[Book, GuestServer], here: Path) -> None:
    book, server = guest
    (here / "one").write_text("1")
    copying.transfer(book, [Place(None, "one")], in_guest(""), Options())
    server.close()
    with pytest.raises(GuestError, match="VM 'work' does not answer by SSH"):
        copying.transfer(book, [Place(None, "one")], in_guest(""), Options())


def test_ctrl_c_is_said(
    guest: tuple[Book, GuestServer], here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scp ends with the signal's status; a program in its place does so at once."""
    book, _ = guest
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scp").write_text("#!/bin/sh\nkill -INT $$\n")
    (tmp_path / "bin" / "scp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(Interrupted, match="interrupted: what was copied so far is there"):
        copying.transfer(book, [in_guest("x")], Place(None, "."), Options())
