"""Fetching pieces from another node of the mesh: over a direct connection, or by the bus where none can be made."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Collection, Sequence

from outbid_contracts.errors import OutbidError
from outbid_contracts.files import BUS_PIECE_BYTES
from outbid_node.files.assembly import Assembly
from outbid_node.files.door import NO, REQUEST
from outbid_node.files.pieces import Piece, Stopped
from outbid_node.files.wire import FRAME_BYTES, Wire, WireError, knock

log = logging.getLogger(__name__)

CONNECT_S = 2.0
STALL_S = 4.0
"""Without a byte for so long, a source is dropped."""

AHEAD = 2
"""Pieces asked for before the first has come: the wire is never idle."""

LACKING_S = 1.0
"""A piece that a node did not have yet is asked for again after this."""

Ask = Callable[[str, int, int], bytes | None]
"""(SHA-256, offset, length) -> data, by the bus; blocking."""


class Neighbour:
    """One node as a source. `run` in a thread of its own until nothing more is wanted, or it fails (OutbidError,
    OSError).
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        key: bytes,
        assembly: Assembly,
        ask: Ask,
        *,
        only: Collection[str],
        start: int = 0,
        number: int = 0,
    ) -> None:
        """`only`: the files it has, by SHA-256. `start`: the piece to begin with. `number` tells several connections to
        one node apart.
        """
        self.name = name
        self.who = f"{name} {number}"
        self._second = number > 0
        self.fetched = 0
        self.direct = False
        self._addresses = addresses
        self._key = key
        self._assembly = assembly
        self._ask = ask
        self._lacking: dict[int, float] = {}
        self._sha256 = [file.sha256 if file.sha256 in only else "" for file in assembly.plan.files]
        self._start = start
        self.dropped = False

    def run(self) -> None:
        wire = self._connect()
        self.direct = wire is not None
        try:
            with contextlib.suppress(Stopped):
                if wire is not None:
                    self._over(wire)
                elif not self._second:
                    self._by_bus()
        finally:
            if wire is not None:
                wire.close()

    def _connect(self) -> Wire | None:
        """By the first address that leads to the node. None: only the bus does."""
        for address in self._addresses:
            host, _, port = address.rpartition(":")
            try:
                sock = socket.create_connection((host.strip("[]"), int(port)), CONNECT_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(STALL_S)
                return knock(sock, self._key)
            except (OSError, ValueError, WireError) as error:
                log.debug("%s is not at %s: %s", self.name, address, error, extra={"action": "pull_no_direct_way"})
        log.info("%s is reached by the bus only", self.name, extra={"action": "pull_by_bus"})
        return None

    def _over(self, wire: Wire) -> None:
        asked: list[Piece] = []
        while not self.dropped:
            while len(asked) < AHEAD and (piece := self._take(wait=not asked)) is not None:
                sha256 = bytes.fromhex(self._sha256[piece.file])
                wire.send(REQUEST.pack(sha256, piece.offset, piece.length))
                asked.append(piece)
            if asked:
                self._receive(wire, asked.pop(0))

    def _receive(self, wire: Wire, piece: Piece) -> None:
        if wire.receive(1) == NO:
            self._lacks(piece)
            return
        data = bytearray(piece.length)
        room = memoryview(data)
        for start in range(0, piece.length, FRAME_BYTES):
            wire.receive_into(room[start : start + FRAME_BYTES])
            self._assembly.pieces.touch(self.who, piece)
        self._got(piece, data)

    def _by_bus(self) -> None:
        while not self.dropped:
            piece = self._take(wait=True)
            if piece is None:
                continue
            data = bytearray()
            for start in range(0, piece.length, BUS_PIECE_BYTES):
                length = min(BUS_PIECE_BYTES, piece.length - start)
                part = self._ask(self._sha256[piece.file], piece.offset + start, length)
                if part is None or len(part) != length:
                    break
                data += part
                self._assembly.pieces.touch(self.who, piece)
            if len(data) == piece.length:
                self._got(piece, data)
            else:
                self._lacks(piece)

    def _take(self, *, wait: bool) -> Piece | None:
        return self._assembly.pieces.take(self.who, self._has, self._start, wait=wait)

    def _has(self, piece: Piece) -> bool:
        since = self._lacking.get(piece.number)
        return bool(self._sha256[piece.file]) and (since is None or time.monotonic() - since > LACKING_S)

    def _lacks(self, piece: Piece) -> None:
        self._lacking[piece.number] = time.monotonic()
        self._assembly.pieces.release(self.who, piece)

    def _got(self, piece: Piece, data: bytearray) -> None:
        if self.dropped:
            raise OutbidError(f"{self.name} was dropped")
        self._assembly.write(piece, data, self.name)
        self.fetched += piece.length
