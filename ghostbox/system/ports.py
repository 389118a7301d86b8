# SPDX-License-Identifier: MIT
"""Choose TCP ports of this machine for servers that cannot choose one themselves, or have to keep theirs."""

from __future__ import annotations

import random
import socket
from contextlib import closing

from ghostbox.errors import GhostboxError

# Linux takes the local end of a connection, and the port of a server that names none, from 32768 on
# (net.ipv4.ip_local_port_range), and Kubernetes takes those of its services from 30000 on. A port from there that is
# free now may be another program's before the server has it.
CHOSEN_FROM = range(16384, 30000)


def choose(but: frozenset[int] = frozenset()) -> int:
    """Return a port of 127.0.0.1 that is free now, and is none of those in ``but``.

    Raises:
        GhostboxError: there is none.
    """
    ports = [port for port in CHOSEN_FROM if port not in but]
    random.shuffle(ports)
    for port in ports:
        if is_free(port):
            return port
    raise GhostboxError(
        f"no port of 127.0.0.1 from {CHOSEN_FROM.start} to {CHOSEN_FROM.stop - 1} is free",
        hint="see which programs listen there: ss -tlnp",
    )


def is_free(port: int) -> bool:
    """Tell whether a server can have the port of 127.0.0.1 now."""
    with closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen(1)
        except OSError:
            return False
    return True
