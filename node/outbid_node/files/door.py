"""Where other nodes of the mesh fetch model files from this one: a port, and a thread for each that came in.

One request is 32 bytes of SHA-256, offset and length. The answer is a frame of one byte, YES or NO, and after YES the
bytes in frames of FRAME_BYTES.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading

from outbid_contracts.files import PIECE_BYTES
from outbid_node.files.shelf import Shelf
from outbid_node.files.wire import FRAME_BYTES, Wire, WireError, answer

log = logging.getLogger(__name__)

REQUEST = struct.Struct("<32sQI")
YES, NO = b"y", b"n"
GUESTS = 32
"""So many may fetch at once; one more is sent away."""

HANDSHAKE_S = 5.0
IDLE_S = 30.0


class Door:
    """Listens from `open` until `close`. `key`: of the mesh, for this purpose."""

    def __init__(self, key: bytes, shelf: Shelf) -> None:
        self._key = key
        self._shelf = shelf
        self._listening: socket.socket | None = None
        self._wires: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes given away."""
        self.turned_away = 0
        """Callers that were not of this mesh."""

    def open(self, host: str, port: int) -> int:
        """Port 0: any free one. Returns which. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
        listening = socket.create_server((host, port), family=family, dualstack_ipv6=both, backlog=GUESTS)
        self._listening = listening
        threading.Thread(target=self._welcome, args=(listening,), name="outbid door", daemon=True).start()
        return int(listening.getsockname()[1])

    def close(self) -> None:
        if self._listening is not None:
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
        with self._lock:
            for sock in self._wires:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _welcome(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            with self._lock:
                full = len(self._wires) >= GUESTS
                if not full:
                    self._wires.add(sock)
            if full:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), name="outbid guest", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(HANDSHAKE_S)
            wire = answer(sock, self._key)
            sock.settimeout(IDLE_S)
            while True:
                self._give(wire, *REQUEST.unpack(wire.receive(REQUEST.size)))
        except WireError as error:
            self.turned_away += "not of this mesh" in error.message
            log.debug("a caller at the door: %s", error.message, extra={"action": "door_closed"})
        except OSError as error:
            log.debug("a caller at the door: %s", error, extra={"action": "door_closed"})
        finally:
            with self._lock:
                self._wires.discard(sock)
            sock.close()

    def _give(self, wire: Wire, sha256: bytes, offset: int, length: int) -> None:
        data = self._shelf.read(sha256.hex(), offset, length) if 0 < length <= PIECE_BYTES else None
        if data is None:
            wire.send(NO)
            return
        wire.send(YES)
        view = memoryview(data)
        for start in range(0, length, FRAME_BYTES):
            wire.send(view[start : start + FRAME_BYTES])
        self.sent += length
