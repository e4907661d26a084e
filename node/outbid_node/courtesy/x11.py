"""Seconds since the last input, from an X server, in X's own protocol.

Not through Xlib: that ends the whole process when its server goes away. The request is QueryInfo of the extension
MIT-SCREEN-SAVER (saverproto 1.1).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

TIMEOUT_S = 1.0
_COOKIE = b"MIT-MAGIC-COOKIE-1"
_EXTENSION = b"MIT-SCREEN-SAVER"
_QUERY_EXTENSION = 98
_QUERY_INFO = 1
_LOCAL_DISPLAY = re.compile(r"(?:unix)?:(\d{1,4})(?:\.\d+)?")


class X11:
    """Of the local display that DISPLAY names. Under Wayland it is not asked: there the X server sees only what is
    meant for its own windows.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, sockets: Path = Path("/tmp/.X11-unix")) -> None:
        self._environ, self._sockets = environ, sockets

    def read(self) -> float | None:
        """None if there is no such display. Raises OSError, struct.error or ValueError where it does not answer as it
        should.
        """
        found = _LOCAL_DISPLAY.fullmatch(self._environ.get("DISPLAY", ""))
        wayland = self._environ.get("WAYLAND_DISPLAY") or self._environ.get("XDG_SESSION_TYPE") == "wayland"
        if found is None or wayland:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.settimeout(TIMEOUT_S)
            server.connect(str(self._sockets / f"X{found[1]}"))
            return _idle_s(server, self._cookie(found[1]))

    def _cookie(self, display: str) -> bytes:
        """Empty without one: some servers let local users in."""
        usual = Path(self._environ.get("HOME", "/nowhere"), ".Xauthority")
        file = Path(self._environ.get("XAUTHORITY") or usual)
        try:
            entries = list(_entries(file.read_bytes()))
        except (OSError, struct.error):
            return b""
        mine = [data for number, name, data in entries if name == _COOKIE and number in (display.encode(), b"")]
        return mine[0] if mine else b""


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Display number, name and data of each entry of an Xauthority file."""
    at = 0
    while at < len(data):
        at += 2  # the address's family
        fields = []
        for _ in range(4):
            (length,) = struct.unpack_from(">H", data, at)
            fields.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        yield fields[1], fields[2], fields[3]


def _idle_s(server: socket.socket, cookie: bytes) -> float | None:
    name = _COOKIE if cookie else b""
    hello = struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(name), len(cookie)) + _padded(name) + _padded(cookie)
    server.sendall(hello)
    status, length = struct.unpack("<B5xH", _exactly(server, 8))
    setup = _exactly(server, length * 4)
    if status != 1:
        raise ValueError("the X server refuses us")
    root = _first_root(setup)
    server.sendall(struct.pack("<BxHHxx", _QUERY_EXTENSION, 2 + len(_EXTENSION) // 4, len(_EXTENSION)) + _EXTENSION)
    present, opcode = struct.unpack_from("<BB", _reply(server), 8)
    if not present:
        return None
    server.sendall(struct.pack("<BBHI", opcode, _QUERY_INFO, 2, root))
    (idle_ms,) = struct.unpack_from("<I", _reply(server), 16)
    return float(idle_ms) / 1000


def _first_root(setup: bytes) -> int:
    """The first screen comes after the vendor's name and the pixmap formats."""
    (vendor,) = struct.unpack_from("<H", setup, 16)
    formats = setup[21]
    (root,) = struct.unpack_from("<I", setup, 32 + len(_padded(bytes(vendor))) + 8 * formats)
    return int(root)


def _reply(server: socket.socket) -> bytes:
    """The next one; events are passed over. Raises ValueError for an error."""
    for _ in range(16):
        head = _exactly(server, 32)
        if head[0] == 1:
            (more,) = struct.unpack_from("<I", head, 4)
            return head + _exactly(server, more * 4)
        if head[0] == 0:
            raise ValueError(f"the X server answers with error {head[1]}")
    raise ValueError("the X server does not answer")


def _exactly(server: socket.socket, count: int) -> bytes:
    if count > 2**20:
        raise ValueError("that is no X server")
    data = b""
    while len(data) < count:
        piece = server.recv(count - len(data))
        if not piece:
            raise ValueError("the X server hung up")
        data += piece
    return data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
