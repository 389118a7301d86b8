# SPDX-License-Identifier: MIT
"""A server listens on more than one address, for a donor whose machine or owner asks for a further one."""

from __future__ import annotations

import socket
import subprocess

import pytest

from ghostbox.system.processes import ControlError, wait_until
from helpers.memserver import Server, running_server
from helpers.nbd import system_python
from helpers.nbd_raw import connect


def _reached(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5) as sock:
            return sock.recv(8) == b"NBDMAGIC"
    except ConnectionError:
        return False


def _addresses(server: Server) -> list[tuple[str, int]]:
    status = server.status()
    return [(each["host"], each["port"]) for each in (status, *status["also"])]


def test_another_address_is_listened_on_beside_the_first() -> None:
    with running_server("--export", "a=64M") as server:
        first = (server.host, server.port)
        with connect(server.port, "a") as client:
            found = server.command("listen", host="127.0.0.2", port=0, only=False)
            second = (found["host"], found["port"])
            assert second[0] == "127.0.0.2"
            assert _addresses(server) == [second, first]
            assert _reached(*first)
            assert _reached(*second)
            assert server.command("listen", host=first[0], port=first[1], only=False) == {
                "host": first[0],
                "port": first[1],
            }
            assert _addresses(server) == [first, second]
            client.write(0, b"x" * 4096)


def test_the_others_are_closed_and_their_connections_stay() -> None:
    with running_server("--export", "a=64M") as server, connect(server.port, "a") as client:
        found = server.command("listen", host="127.0.0.2", port=0, only=True)
        wait_until(lambda: not _reached(server.host, server.port), timeout_s=10, what="the old address being closed")
        assert _addresses(server) == [("127.0.0.2", found["port"])]
        assert _reached("127.0.0.2", found["port"])
        client.write(0, b"x" * 4096)
        assert client.read(0, 4096) == b"x" * 4096


def test_all_addresses_and_one_of_them() -> None:
    with running_server("--export", "a=64M") as server, connect(server.port, "a") as client:
        everywhere = {"host": "0.0.0.0", "port": server.port}
        assert server.command("listen", **everywhere, only=False) == everywhere
        assert _addresses(server) == [("0.0.0.0", server.port)]
        assert _reached("127.0.0.1", server.port)
        assert _reached("127.0.0.9", server.port)
        assert server.command("listen", host="127.0.0.9", port=server.port, only=False) == everywhere
        client.write(0, b"x" * 4096)
        assert _reached("127.0.0.1", server.port)


def test_an_address_that_cannot_be_listened_on_changes_nothing() -> None:
    with running_server() as server:
        before = _addresses(server)
        refused = {
            ("192.0.2.1", 0): ("unavailable", "cannot listen on 192.0.2.1 port 0: Cannot assign requested address"),
            ("nowhere.invalid", 0): ("unavailable", "cannot listen on nowhere.invalid: "),
            ("127.0.0.1", 70000): ("invalid", '"host" must be an address, "port" a port, "only" true or false'),
        }
        for (host, port), (code, text) in refused.items():
            with pytest.raises(ControlError, match=text) as caught:
                server.command("listen", host=host, port=port, only=True)
            assert caught.value.code == code
        assert _addresses(server) == before
        for number in range(7):
            server.command("listen", host=f"127.0.0.{number + 2}", port=0, only=False)
        with pytest.raises(ControlError, match="cannot listen on more than 8 addresses"):
            server.command("listen", host="127.0.0.20", port=0, only=False)


def test_the_description_says_which_machine_and_whose_memory_it_is() -> None:
    script = "h.connect_uri({uri!r}); print(h.get_export_description())"
    with running_server("--export", "a=1M", "--machine", "m1", "--donor-id", "d1") as server:
        code = f"h.set_full_info(True); {script.format(uri=server.uri('a'))}"
        done = subprocess.run(
            ["nbdsh", "-c", code], env=system_python(), capture_output=True, text=True, timeout=60, check=True
        )
        incarnation = server.export("a")["incarnation"]
    assert done.stdout == f"GhostBox memory {incarnation}, machine m1, donor d1\n"
