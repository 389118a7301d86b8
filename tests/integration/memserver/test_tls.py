# SPDX-License-Identifier: MIT
"""STARTTLS: a client with the right key gets in, one without it does not; errors tell the client why."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system import processes
from ghostbox.system.processes import ControlError
from helpers import gnutls
from helpers import nbd_raw as nbd
from helpers.memserver import Server, run_server, running_server
from helpers.nbd_raw import RawClient, context_data, info_data
from helpers.recording_relay import recording_relay

KEY_A, KEY_B, KEY_WRONG = "a1" * 32, "b2" * 32, "c3" * 32
SIZE = 64 << 20
REFUSED = "TLS: an unknown identity, or a wrong key: connection closed"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return gnutls.key_file(tmp_path / "keys.psk", a=KEY_A, b=KEY_B)


@pytest.fixture
def strict(keys: Path) -> Iterator[Server]:
    """Yield a server that answers only inside TLS; it exports a and b."""
    argv = ("--tls", "require", "--tls-psk", str(keys), "--log-level", "debug")
    with running_server("--export", "a=64M", "--export", "b=64M", *argv) as running:
        yield running


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Server]:
    """Yield a server with the export ``open``, which has no key, and ``a``, which has one."""
    keys = gnutls.key_file(tmp_path / "a.psk", a=KEY_A)
    with running_server("--export", "open=1M", "--export", "a=1M", "--tls-psk", str(keys)) as running:
        yield running


def secured(port: int, identity: str = "a", key: str = KEY_A, *, priority: str = gnutls.PSK_DHE) -> RawClient:
    """Return a client that has shown a key. Raises ``gnutls.TlsError``."""
    client = RawClient(port)
    # As NBD clients do: else the kernel holds back what is sent until the one before was read.
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
    client.socket = gnutls.Session.client(client.socket, identity, key, priority=priority)  # type: ignore[assignment]
    return client


def refusals(port: int, identity: str, key: str, *, priority: str = gnutls.PSK_DHE) -> str:
    with pytest.raises(gnutls.TlsError) as caught:
        secured(port, identity, key, priority=priority)
    return str(caught.value)


def nbds(server: Server, export: str, keys: Path, *, user: str | None = None) -> str:
    return f"nbds://{user or export}@{server.host}:{server.port}/{export}?tls-psk-file={keys}"


# --- clients of other projects ---


def test_nbdcopy_brings_back_over_tls_what_it_took_there(strict: Server, keys: Path, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(os.urandom(SIZE))
    uri = nbds(strict, "a", keys)
    for pair in ([str(content), uri], [uri, str(tmp_path / "back")]):
        subprocess.run(["nbdcopy", "--connections=4", "--requests=64", *pair], check=True, timeout=120)
    assert (tmp_path / "back").read_bytes() == content.read_bytes()


def test_nbdinfo_says_tls_and_lists_the_export_of_the_key_only(strict: Server, keys: Path) -> None:
    # Without --no-content nbdinfo prints the output of file(1); if that is not installed, bytes of its own memory.
    shown = subprocess.check_output(["nbdinfo", "--no-content", nbds(strict, "a", keys)], text=True, timeout=60)
    assert "protocol: newstyle-fixed with TLS" in shown
    uri = f"nbds://b@{strict.host}:{strict.port}/?tls-psk-file={keys}"
    listed = subprocess.check_output(["nbdinfo", "--no-content", "--list", uri], text=True, timeout=60)
    assert re.findall(r'^export="(.*)":', listed, re.MULTILINE) == ["b"]


def qemu(server: Server, keys: Path, program: str, *argv: str, more: str = "") -> subprocess.CompletedProcess[str]:
    folder = keys.parent / "qemu"
    folder.mkdir(exist_ok=True)
    (folder / "keys.psk").write_text(keys.read_text())
    credentials = f"tls-creds-psk,id=t,dir={folder},endpoint=client,username=a{more}"
    full = [program, *argv[:1], "--object", credentials, *argv[1:]]
    return subprocess.run(full, capture_output=True, text=True, check=False, timeout=60)


def qemu_image(server: Server) -> tuple[str, str]:
    port = f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={server.port}"
    return "--image-opts", f"{port},export=a,tls-creds=t"


def test_qemu_img_opens_it_with_the_key(strict: Server, keys: Path) -> None:
    done = qemu(strict, keys, "qemu-img", "info", *qemu_image(strict))
    assert (done.returncode, done.stderr) == (0, "")
    assert "virtual size: 64 MiB" in done.stdout


def test_qemu_nbd_lists_with_the_key(strict: Server, keys: Path) -> None:
    argv = ("--list", "--tls-creds", "t", "-b", "127.0.0.1", "-p", str(strict.port))
    done = qemu(strict, keys, "qemu-nbd", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert "exports available: 1\n export: 'a'\n" in done.stdout


# --- clients that do not get in ---


def test_a_wrong_key_and_an_unknown_identity_are_refused_alike(strict: Server) -> None:
    assert refusals(strict.port, "a", KEY_WRONG) == refusals(strict.port, "nobody", KEY_A) == "Illegal parameter"
    processes.wait_until(lambda: strict.log().count(REFUSED) == 2, timeout_s=20, what="both refusals in the log")
    assert strict.status()["exports"][0]["connections"] == 0


def test_the_key_of_one_export_with_the_name_of_another_is_refused(strict: Server) -> None:
    assert refusals(strict.port, "a", KEY_B) == "Illegal parameter"


def test_tls_1_2_is_refused(strict: Server) -> None:
    refusals(strict.port, "a", KEY_A, priority=gnutls.TLS_1_2)
    strict.wait_for_log("TLS: A packet with illegal or unsupported version was received.: connection closed")


def test_a_key_without_an_ephemeral_exchange_is_refused(strict: Server) -> None:
    refusals(strict.port, "a", KEY_A, priority=gnutls.PSK_PLAIN)
    processes.wait_until(lambda: ": TLS: " in strict.log(), timeout_s=20, what="the refusal in the log")
    with secured(strict.port) as client:
        client.go("a")


def test_bytes_that_are_no_tls_end_the_connection(strict: Server) -> None:
    with RawClient(strict.port) as client:
        assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        client.send_option(nbd.GO, info_data("a"))
        while client.socket.recv(64):  # an alert
            pass
    strict.wait_for_log(": TLS: ")


def test_bytes_behind_starttls_are_not_taken_for_encrypted_ones(strict: Server) -> None:
    with RawClient(strict.port) as client:
        head = struct.pack(">QII", nbd.OPTION_MAGIC, nbd.STARTTLS, 0)
        client.socket.sendall(head + struct.pack(">QII", nbd.OPTION_MAGIC, nbd.STRUCTURED_REPLY, 0))
        assert client.is_closed()
    strict.wait_for_log("the client sent bytes behind STARTTLS before it was answered: connection closed")


def test_a_client_that_stops_in_the_handshake_is_closed_in_time(keys: Path) -> None:
    with running_server("--export", "a=1M", "--tls-psk", str(keys), "--handshake-timeout", "1") as server:
        with RawClient(server.port) as client:
            assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
            client.socket.sendall(b"\x16\x03\x01\x01\x00")
            assert client.is_closed()
        server.wait_for_log("no export chosen after 1000 ms: connection closed")


# --- messages to clients ---


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (nbd.LIST, b""),
        (nbd.INFO, info_data("a")),
        (nbd.GO, info_data("a")),
        (nbd.GO, info_data("nothing")),
        (nbd.STRUCTURED_REPLY, b""),
        (nbd.LIST_META, context_data("a")),
        (nbd.SET_META, context_data("a", "base:allocation")),
        (99, b""),
    ],
)
def test_where_tls_is_required_nothing_is_said_without(strict: Server, option: int, data: bytes) -> None:
    with RawClient(strict.port) as client:
        message = b"this server needs TLS: begin with STARTTLS"
        assert client.option(option, data) == [(nbd.ERR_TLS_REQD, message)]
        assert client.option(nbd.ABORT) == [(nbd.ACK, b"")]


def test_export_name_without_tls_can_only_be_closed(strict: Server) -> None:
    with RawClient(strict.port) as client:
        client.send_option(nbd.EXPORT_NAME, b"a")
        assert client.is_closed()
    strict.wait_for_log("the client asked for an export without TLS (--tls require): connection closed")


def test_a_key_shows_and_opens_its_own_export_and_no_other(strict: Server) -> None:
    unknown = [(nbd.ERR_UNKNOWN, b"no export of this name")]
    with secured(strict.port) as client:
        assert client.option(nbd.LIST) == [(nbd.REP_SERVER, b"\0\0\0\1a"), (nbd.ACK, b"")]
        assert client.option(nbd.INFO, info_data("b")) == unknown
        assert client.option(nbd.GO, info_data("b")) == unknown
        assert client.option(nbd.GO, info_data("b?writer")) == unknown
        client.negotiate_structured()
        assert client.option(nbd.LIST_META, context_data("b")) == unknown
        assert client.set_context("b", "base:allocation") == unknown
        client.go("a")
        client.write(4096, b"seen" * 1024)
        assert client.read(0, 8192) == bytes(4096) + b"seen" * 1024


def test_without_a_required_tls_only_exports_without_a_key_are_open(mixed: Server) -> None:
    needs = [(nbd.ERR_TLS_REQD, b"this export needs TLS")]
    with RawClient(mixed.port) as client:
        assert client.option(nbd.LIST) == [(nbd.REP_SERVER, b"\0\0\0\4open"), (nbd.ACK, b"")]
        assert client.option(nbd.INFO, info_data("a")) == needs
        assert client.option(nbd.GO, info_data("a")) == needs
        assert client.option(nbd.GO, info_data("a?writer")) == needs
        client.negotiate_structured()
        assert client.set_context("a", "base:allocation") == needs
        client.go("open")
    with RawClient(mixed.port) as client:
        client.send_option(nbd.EXPORT_NAME, b"a")
        assert client.is_closed()
    mixed.wait_for_log("the client asked for an export that needs TLS: connection closed")


def test_over_tls_an_export_without_a_key_is_not_there(mixed: Server) -> None:
    with secured(mixed.port) as client:
        assert client.option(nbd.GO, info_data("open")) == [(nbd.ERR_UNKNOWN, b"no export of this name")]


def test_starttls_takes_no_data_and_is_said_once(strict: Server) -> None:
    with RawClient(strict.port) as client:
        assert client.option(nbd.STARTTLS, b"x") == [(nbd.ERR_INVALID, b"NBD_OPT_STARTTLS takes no data")]
    with secured(strict.port) as client:
        message = b"this connection is encrypted already"
        assert client.option(nbd.STARTTLS) == [(nbd.ERR_INVALID, message)]
        client.go("a")


def test_what_was_negotiated_before_tls_is_forgotten(mixed: Server) -> None:
    with RawClient(mixed.port) as client:
        client.negotiate_structured()
        assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        client.socket = gnutls.Session.client(client.socket, "a", KEY_A)  # type: ignore[assignment]
        client.go("a")
        assert client.command(nbd.READ, 0, 512).chunks is None


# --- content ---


def test_long_and_short_requests_in_flight_are_answered_rightly(strict: Server) -> None:
    """Replies of 1 MiB wait behind a client that reads late; a key update comes in between."""
    content = os.urandom(1 << 20)
    with secured(strict.port) as client:
        client.go("a")
        client.write(0, content)
        for _ in range(24):
            client.send(nbd.READ, 0, 1 << 20)
            client.send(nbd.READ, 4096, 512)
        client.socket.update_key()  # type: ignore[attr-defined]
        client.send(nbd.WRITE, 1 << 20, 4096, payload=content[:4096])
        for _ in range(24):
            assert client.reply(1 << 20).data == content
            assert client.reply(512).data == content[4096:4608]
        assert client.reply().error == 0
        assert client.read(1 << 20, 4096) == content[:4096]


def test_requests_sent_one_by_one_are_answered_where_the_server_gathers(keys: Path) -> None:
    """It is woken by bytes of the socket, which are more than those of the requests."""
    argv = ("--tls", "require", "--tls-psk", str(keys), "--gather", "always", "--threads", "1", "--poll-us", "0")
    with running_server("--export", "a=1M", *argv) as server, secured(server.port) as client:
        client.go("a")
        client.write(0, b"x" * 4096)
        for _ in range(16):
            client.send(nbd.READ, 0, 512)
        for _ in range(100):
            for _ in range(200):
                assert client.reply(512).data == b"x" * 512
                client.send(nbd.READ, 0, 512)
            if server.status()["gathering"]["in_time"] > 20:
                return
        pytest.fail(f"never waited for several requests: {server.status()['gathering']}")


def test_a_new_writer_ends_the_one_before_over_tls(strict: Server) -> None:
    with secured(strict.port) as first, secured(strict.port) as second:
        first.go("a?writer")
        second.go("a?writer")
        assert first.is_closed()
        second.write(0, b"x")


def test_an_observer_sees_no_byte_of_the_memory_nor_of_the_names(strict: Server, keys: Path, tmp_path: Path) -> None:
    pattern = b"NoByteOfThisPatternPasses"
    (tmp_path / "content").write_bytes(pattern * 4000)
    with recording_relay(strict.port) as relay:
        uri = f"nbds://a@127.0.0.1:{relay.port}/a?tls-psk-file={keys}"
        for pair in ([str(tmp_path / "content"), uri], [uri, str(tmp_path / "back")]):
            subprocess.run(["nbdcopy", *pair], check=True, timeout=60)
        assert pattern[:8] not in relay.seen
        assert b"GhostBox memory" not in relay.seen
        assert bytes.fromhex(KEY_A)[:8] not in relay.seen
        assert len(relay.seen) > 2 * 4000 * len(pattern)


def test_the_observer_of_these_tests_sees_what_is_not_encrypted(server: Server) -> None:
    with recording_relay(server.port) as relay, RawClient(relay.port) as client:
        client.go("a")
        client.write(0, b"NoByteOfThisPatternPasses")
        assert b"NoByteOfThisPatternPasses" in relay.seen
        assert b"nbd" not in relay.seen


# --- exports that come and go ---


def test_an_export_gets_its_key_by_the_control_socket(mixed: Server) -> None:
    added = mixed.command("export-add", name="late", size_bytes=4096, tls_psk=KEY_B)
    assert added["tls"] is True
    assert mixed.export("open")["tls"] is False
    with secured(mixed.port, "late", KEY_B) as client:
        client.go("late")
        client.write(0, b"x")


def test_a_later_export_takes_its_key_from_the_file(keys: Path) -> None:
    with running_server("--tls", "require", "--tls-psk", str(keys)) as server:
        server.command("export-add", name="b", size_bytes=4096)
        with secured(server.port, "b", KEY_B) as client:
            client.go("b")


def test_an_export_that_ends_ends_its_connections_and_its_key(mixed: Server) -> None:
    """A client showed the key of an export, but did not open it yet.

    It cannot open a later export of that name.
    """
    with secured(mixed.port) as live, secured(mixed.port) as waiting:
        live.go("a")
        live.write(0, b"x")
        mixed.command("export-remove", name="a", force=True)
        assert live.is_closed()
        mixed.command("export-add", name="a", size_bytes=4096, tls_psk=KEY_B)
        assert waiting.option(nbd.GO, info_data("a")) == [(nbd.ERR_UNKNOWN, b"no export of this name")]
    with secured(mixed.port, "a", KEY_B) as client:
        client.go("a")


def test_without_a_key_left_there_is_no_tls(mixed: Server) -> None:
    mixed.command("export-remove", name="a")
    with RawClient(mixed.port) as client:
        message = b"this server does not speak TLS: no export has a key"
        assert client.option(nbd.STARTTLS) == [(nbd.ERR_UNSUP, message)]


@pytest.mark.parametrize("key", ["a1" * 15, "a1" * 65, "a1" * 16 + "g", "xy" * 16, 5])
def test_a_key_of_another_form_is_refused(mixed: Server, key: object) -> None:
    with pytest.raises(ControlError, match='"tls_psk" must be a key of 32 to 128 hexadecimal digits') as caught:
        mixed.command("export-add", name="new", size_bytes=4096, tls_psk=key)
    assert caught.value.code == "invalid"


def test_a_name_that_is_no_identity_gets_no_key(mixed: Server) -> None:
    with pytest.raises(ControlError, match="an export with a key has a name of at most 128 bytes"):
        mixed.command("export-add", name="x" * 129, size_bytes=4096, tls_psk=KEY_A)
    mixed.command("export-add", name="x" * 128, size_bytes=4096, tls_psk=KEY_B)
    with secured(mixed.port, "x" * 128, KEY_B) as client:
        client.go("x" * 128)


def test_where_tls_is_required_an_export_needs_a_key(strict: Server, keys: Path) -> None:
    with pytest.raises(ControlError, match=r"export 'c' has no key, and --tls require demands one for each") as caught:
        strict.command("export-add", name="c", size_bytes=4096)
    assert caught.value.code == "needs-key"
    done = run_server("--size", "1M", "--export", "c=4K", "--tls", "require", "--tls-psk", str(keys))
    assert done.returncode == 1
    assert "export 'c' has no key in --tls-psk, and --tls require demands one for each export" in done.stderr


def test_keys_are_in_neither_argv_nor_log_nor_status(strict: Server) -> None:
    with secured(strict.port):
        strict.wait_for_log("TLS begins")
    strict.command("export-add", name="c", size_bytes=4096, tls_psk=KEY_WRONG)
    argv = Path(f"/proc/{strict.process.pid}/cmdline").read_text()
    told = argv + strict.log() + str(strict.status())
    assert "'tls': True" in told
    assert not any(key in told.lower() for key in (KEY_A, KEY_B, KEY_WRONG))


# --- the file of keys ---


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0, "cannot be opened: No such file or directory"),
        (f"a:{KEY_A}\n", 0o640, "is open to other users (mode 0640): chmod 600 it, and make new keys"),
        (f"{KEY_A}\n", 0o600, "cannot be used: its line 1 is not IDENTITY:HEXKEY with an identity of 1 to 128 bytes"),
        (
            "# ours\na:12ab\n",
            0o600,
            "cannot be used: its line 2 has no key of 32 to 128 hexadecimal digits behind its last colon",
        ),
        (f"a:{KEY_A}\na:{KEY_B}\n", 0o600, "has two keys for 'a': leave one"),
    ],
)
def test_a_file_that_is_no_good_is_refused_with_the_reason(
    tmp_path: Path, content: str | None, mode: int, message: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    done = run_server("--size", "1M", "--port", "0", "--tls-psk", str(path))
    assert done.returncode == 1
    assert f"--tls-psk: the key file {path} {message}\n" in done.stderr
    assert KEY_A not in done.stderr
