# SPDX-License-Identifier: MIT
"""Answer multicast DNS with whatever a test wants, also with what no donor would say: a program for a namespace.

    python announcer.py ADDRESS PORT INSTANCE TEXT [ADDRESS...]

INSTANCE and TEXT are hexadecimal: the bytes of the label, and of the TXT record. It sends one answer, from ADDRESS,
each time that it hears anything that asks for the donors' service, and prints a line once it listens. The records are
put together here byte by byte (RFC 1035, 6762, 6763): a library refuses to send what is not allowed.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

GROUP, PORT = "224.0.0.251", 5353
SERVICE = (b"_ghostbox", b"_tcp", b"local")
_PTR, _A, _TXT, _AAAA, _SRV = 12, 1, 16, 28, 33


def name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(each)]) + each for each in labels) + b"\0"


def resource(owner: bytes, kind: int, data: bytes) -> bytes:
    unique = 0 if kind == _PTR else 0x8000
    return owner + struct.pack(">HHIH", kind, 1 | unique, 120, len(data)) + data


def answer(instance: bytes, port: int, text: bytes, addresses: list[str]) -> bytes:
    """Return an mDNS answer that announces a donor."""
    service, own, host = name(*SERVICE), name(instance, *SERVICE), name(b"somewhere", b"local")
    records = [
        resource(service, _PTR, own),
        resource(own, _SRV, struct.pack(">HHH", 0, 0, port) + host),
        resource(own, _TXT, text),
    ]
    for each in map(ipaddress.ip_address, addresses):
        records.append(resource(host, _A if each.version == 4 else _AAAA, each.packed))
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def main() -> None:
    address, port, instance, text, *addresses = sys.argv[1:]
    packet = answer(bytes.fromhex(instance), int(port), bytes.fromhex(text), addresses or [address])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", PORT))
        sock.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton(address)
        )
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        print("listening", flush=True)
        while True:
            heard, _ = sock.recvfrom(65536)
            if b"\x09_ghostbox" in heard:
                sock.sendto(packet, (GROUP, PORT))


if __name__ == "__main__":
    main()
