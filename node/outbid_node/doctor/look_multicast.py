"""Does this machine hear its own multicast? A question of mDNS that nobody answers, sent on each interface."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from contextlib import suppress

from outbid_node.bus.interfaces import Local, local_addresses
from outbid_node.doctor.facts import Echo

GROUP, PORT = "224.0.0.251", 5353
LISTEN_S = 0.8
MOST = 16


async def look_at_multicast() -> tuple[Echo, ...]:
    """One echo for each IPv4 address; raises OSError where there can be none at all."""
    mine = [local for local in local_addresses() if local.address.version == 4][:MOST]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        _listen(listener)
        errors = {local: _join(listener, local) for local in mine}
        names = {local: secrets.token_hex(8).encode() for local in mine}
        for local in mine:
            errors[local] = errors[local] or _send(local, names[local])
        heard = await _hear(listener, {names[local] for local in mine if not errors[local]})
    return tuple(
        Echo(interface=local.interface, address=str(local.address), heard=names[local] in heard, error=errors[local])
        for local in mine
    )


def _listen(listener: socket.socket) -> None:
    """Beside the programs that have that port already, the daemon among them."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("", PORT))
    listener.setblocking(False)


def _join(listener: socket.socket, local: Local) -> str:
    try:
        where = socket.inet_aton(GROUP) + local.address.packed
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, where)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _send(local: Local, name: bytes) -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local.address.packed)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            sender.sendto(question(name), (GROUP, PORT))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def question(name: bytes) -> bytes:
    """Who is `<name>._outbid-doctor._udp.local`? (RFC 6762: a query with one question, type PTR, class IN.)"""
    labels = (name, b"_outbid-doctor", b"_udp", b"local", b"")
    encoded = b"".join(bytes([len(label)]) + label for label in labels)
    return struct.pack("!6H", 0, 0, 1, 0, 0, 0) + encoded + struct.pack("!2H", 12, 1)


async def _hear(listener: socket.socket, names: set[bytes]) -> set[bytes]:
    """Those of `names` that come back within LISTEN_S; returns at once when all have."""
    loop, heard = asyncio.get_running_loop(), set[bytes]()
    with suppress(TimeoutError):
        async with asyncio.timeout(LISTEN_S):
            while heard < names:
                data = await loop.sock_recv(listener, 9000)
                heard |= {name for name in names if name in data}
    return heard
