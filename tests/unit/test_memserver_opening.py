# SPDX-License-Identifier: MIT
"""A memserver's control port is its own from the moment that it has it, or is said to be taken."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from ghostbox.errors import GhostboxError
from ghostbox.memserver import opening


def test_a_port_on_which_another_program_listens_right_after_bind_is_said_to_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind = socket.socket.bind
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]

        def after_which_the_other_listens(self: socket.socket, address: Any) -> None:
            bind(self, address)
            other.listen()

        monkeypatch.setattr(socket.socket, "bind", after_which_the_other_listens)
        said = f"cannot listen on 127.0.0.1 port {port} (control API): address already in use"
        with pytest.raises(GhostboxError, match=f"^{re.escape(said)}$"):
            opening.listen("127.0.0.1", port)
