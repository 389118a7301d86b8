# SPDX-License-Identifier: MIT
"""At the start the shim hands over its memory; a process without a pager ends and says why."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers import fake_pager as wire
from helpers.fake_pager import FakePager, Peer
from helpers.pager import MemoryClient, memory_client, run_client


def with_peer(fake: FakePager, act: Callable[[Peer], object]) -> threading.Thread:
    """Serve one connection beside the test."""
    thread = threading.Thread(target=lambda: act(fake.accept()), daemon=True)
    thread.start()
    return thread


def refused(fake: FakePager, act: Callable[[Peer], object], **env: Any) -> str:
    """Run a client against a misbehaving pager; return the client's last message."""
    thread = with_peer(fake, act)
    done = run_client("1M", "read", listen=fake.path, **env)
    thread.join(10)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_without_the_variable_the_process_ends_and_says_so() -> None:
    done = run_client("1M", "read", listen=None)
    assert done.returncode == 1
    assert done.stderr == "ghostbox-shim: GHOSTBOX_PAGER_SOCKET is not set, so the remote memory has no pager\n"


def test_without_a_socket_the_process_ends_and_says_so(place: Path) -> None:
    done = run_client("1M", "read", listen=place / "p")
    assert done.returncode == 1
    assert done.stderr == (f"ghostbox-shim: cannot connect to the pager at {place}/p: No such file or directory\n")


def test_nobody_listening_is_said(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(place / "p"))
    done = run_client("1M", "read", listen=place / "p")
    assert f"cannot connect to the pager at {place}/p: Connection refused" in done.stderr


def test_a_path_that_is_too_long_is_said(place: Path) -> None:
    done = run_client("1M", "read", listen=place / ("x" * 120))
    assert "the pager's socket path is longer than 107 bytes" in done.stderr


def test_a_refusal_is_passed_on_in_the_pagers_words(fake: FakePager) -> None:
    def reject(peer: Peer) -> None:
        peer.take_hello()
        peer.reject(errno.ENOSPC, b"the donors have 1 MiB, the memory 2 MiB")

    assert refused(fake, reject) == ("ghostbox-shim: the pager refuses: the donors have 1 MiB, the memory 2 MiB\n")


def test_a_refusal_before_the_hello_is_heard(fake: FakePager) -> None:
    def reject(peer: Peer) -> None:
        peer.reject(errno.EPERM, b"uid 65534 may not connect")

    assert "the pager refuses: uid 65534 may not connect" in refused(fake, reject)


def test_a_refused_region_ends_the_process(fake: FakePager) -> None:
    def reject(peer: Peer) -> None:
        peer.take_memory()
        peer.reject(errno.ENOSPC, b"too long")

    assert "the pager refuses: too long" in refused(fake, reject)


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak the pager's protocol"),
        (b"x", "does not speak the pager's protocol"),
        (struct.pack("=IHHII", wire.MAGIC, 7, wire.WELCOME, 0, 16), "the pager speaks version 7 of the protocol"),
        (
            struct.pack("=IHHII", wire.MAGIC, wire.VERSION, wire.WELCOME, 0, 99),
            "a message of 16 bytes that says it has 99",
        ),
        (
            struct.pack("=IHHII", wire.MAGIC, wire.VERSION, wire.ZAP, 0, 16),
            "sent message 6 of 16 bytes where 2 of 32 was due",
        ),
        (bytes(5000), "sent a message that is too long"),
    ],
)
def test_an_answer_that_is_no_welcome_ends_the_process(fake: FakePager, packet: bytes, message: str) -> None:
    def answer(peer: Peer) -> None:
        peer.take_hello()
        peer.sock.send(packet)

    assert message in refused(fake, answer)


def test_a_pager_that_closes_is_said(fake: FakePager) -> None:
    assert "the pager closed the connection" in refused(fake, lambda peer: peer.sock.close())


def test_a_welcome_without_the_device_is_refused(fake: FakePager) -> None:
    def answer(peer: Peer) -> None:
        peer.take_hello()
        peer.send(wire.WELCOME, struct.pack("=QQ", wire.UFFD_FEATURES, wire.REGISTER_MODES))

    assert "the pager sent no userfaultfd device" in refused(fake, answer)


def test_a_device_that_is_none_is_refused(fake: FakePager) -> None:
    def answer(peer: Peer) -> None:
        peer.take_hello()
        null = os.open("/dev/null", os.O_RDWR)
        peer.send(wire.WELCOME, struct.pack("=QQ", 0, 0), fds=(null,))
        os.close(null)

    assert "cannot make a userfaultfd from the device that the pager sent" in refused(fake, answer)


def test_features_that_the_kernel_lacks_are_named(fake: FakePager) -> None:
    def answer(peer: Peer) -> None:
        peer.take_hello()
        peer.welcome(features=1 << 60)

    assert "userfaultfd lacks features that the pager asks for (0x1000000000000000)" in refused(fake, answer)


def test_modes_that_the_kernel_refuses_are_said(fake: FakePager) -> None:
    def answer(peer: Peer) -> None:
        peer.take_hello()
        peer.welcome(modes=1 << 20)

    assert "cannot register 1048576 bytes of guest memory with userfaultfd: Invalid argument" in refused(fake, answer)


def test_what_is_handed_over_serves_the_memory(fake: FakePager) -> None:
    def serve(peer: Peer) -> None:
        peer.handshake()
        page, _ = peer.serve_fault(b"\x2a" + bytes(4095))
        assert page == 3

    with_peer(fake, serve)
    with memory_client("1M", fake.path) as client:
        assert client.command("read", first=3)["value"] == 42
        peer = fake.peers[0]
        assert peer.length == 1 << 20
        assert peer.pid == client.pid
        assert not peer.hello_flags & wire.HELLO_RESUME
        assert os.fstat(peer.memfd).st_blocks * 512 == 4096


def test_memory_that_is_mapped_private_is_no_business_of_the_pager(fake: FakePager) -> None:
    done = run_client("1M", "--private", "write", listen=fake.path)
    assert done.returncode == 0
    assert fake.no_shim_connects()


def test_memory_that_is_mapped_private_is_kept_once(fake: FakePager) -> None:
    """The kernel would keep each page twice: in the memfd, and in its private mapping."""
    with memory_client("32M", fake.path, words=("--private",)) as client:
        client.command("fill", seed=1)
        client.command("verify", seed=1)
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{client.pid}/status").read_text().splitlines() if ":" in line
        )
        memfd = next(
            link for link in Path(f"/proc/{client.pid}/fd").iterdir() if str(link.readlink()).startswith("/memfd:")
        )
        assert int(status["RssAnon"].split()[0]) >= 32 << 10
        assert memfd.stat().st_blocks == 0
        assert fake.no_shim_connects()


def test_small_pieces_that_a_guest_reports_free_stay_in_memory_that_is_local(fake: FakePager) -> None:
    """Small pieces would split huge pages. Single pages (a balloon's) and huge pages are given back."""
    pages = {32: True, 256: True, 511: True, 1: False, 31: False, 512: False, 1024: False}
    with memory_client("8M", fake.path, words=("--private",)) as client:
        for n, stays in pages.items():
            client.command("fill", seed=1)
            client.command("dontneed", first=512, n=n)
            client.command("verify", seed=1 if stays else 0, first=512, n=n)
            client.command("verify", seed=1, first=512 + n)


def test_memory_that_took_the_place_of_local_memory_is_discarded_whatever_the_size(fake: FakePager) -> None:
    with memory_client("8M", fake.path, words=("--private",)) as client:
        client.command("fill", seed=1)
        client.command("map-over")
        client.command("dontneed", first=512, n=32)
        client.command("verify", seed=0, first=512, n=32)


def test_a_program_without_such_memory_is_left_alone(fake: FakePager) -> None:
    def spawn(client: MemoryClient) -> None:
        assert client.command("spawn")["status"] == 0

    thread = with_peer(fake, Peer.handshake)
    with memory_client("1M", fake.path) as client:
        thread.join(10)
        spawn(client)
        assert fake.no_shim_connects()


def shim_thread_status(pid: int) -> str:
    """Return /proc/…/status of the shim's thread, or an empty string."""
    texts = [task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return next((text for text in texts if text.startswith("Name:\tghostbox-shim\n")), "")


def test_the_thread_blocks_all_signals_and_has_a_name(fake: FakePager) -> None:
    with_peer(fake, Peer.handshake)
    with memory_client("1M", fake.path) as client:
        wait_until(lambda: shim_thread_status(client.pid) != "", timeout_s=10, what="the thread's name")
        lines = shim_thread_status(client.pid).splitlines()
        blocked = int(next(line for line in lines if line.startswith("SigBlk")).split()[1], 16)
        # SIGKILL and SIGSTOP cannot be blocked; the C library keeps two real-time signals for itself.
        assert blocked | 1 << 8 | 1 << 18 | 3 << 31 == (1 << 64) - 1


def test_memory_added_later_without_a_pager_fails_and_the_process_lives(fake: FakePager, place: Path) -> None:
    with_peer(fake, Peer.handshake)
    with memory_client("1M", fake.path, stderr=place / "err") as client:
        assert fake.listener is not None
        fake.listener.close()
        assert client.attempt("map")["error"] == "mmap: ECONNREFUSED"
        assert "cannot connect to the pager" in (place / "err").read_text()
        assert client.command("allocated")["bytes"] == 0
        client.command("unmap")  # without a region the process is still a running guest
        assert client.attempt("map")["error"] == "mmap: ECONNREFUSED"


def test_stdout_stays_the_programs_own(fake: FakePager) -> None:
    with_peer(fake, Peer.handshake)
    done = run_client("1M", "allocated", listen=fake.path)
    assert done.returncode == 0
    assert done.stdout == '{"command": "allocated", "ok": true, "bytes": 0}\n'
