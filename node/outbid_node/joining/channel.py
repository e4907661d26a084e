"""An authenticated, encrypted conversation between two machines that share only a join code.

SPAKE2 turns the code into a strong key (or into two different ones, if the codes differ). From it come two
ChaCha20-Poly1305
keys, one for each direction, and messages are numbered, so nothing can be replayed, reordered or cut out unnoticed.

Frames on the wire: four bytes of length, then MessagePack (before the key is agreed) or a sealed box (after).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from outbid_contracts.errors import OutbidError

MAX_FRAME = 64 * 1024
TIMEOUT_S = 10.0
"""For each step of the conversation; a scanner that connects and says nothing is gone after it."""


class JoinFailed(OutbidError):
    """Joining did not work; the message says why."""

    code = "join_failed"
    status = 403


class WrongCode(JoinFailed):
    """The code is not the one of this invitation; check it and try again."""

    code = "wrong_code"


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The joiner's first words, in clear: which invitation, and its SPAKE2 message."""

    v: int
    invitation: str
    spake: bytes


class Welcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The inviter's answer, in clear: its SPAKE2 message, or why not."""

    v: int
    spake: bytes = b""
    refusal: str = ""


class Channel:
    """One side of the conversation."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._seal: ChaCha20Poly1305 | None = None
        self._open: ChaCha20Poly1305 | None = None
        self._sent = 0
        self._received = 0

    async def send(self, message: Any) -> None:
        data = msgspec.msgpack.encode(message)
        if self._seal is not None:
            data = self._seal.encrypt(_nonce(self._sent), data, None)
            self._sent += 1
        self._writer.write(struct.pack(">I", len(data)) + data)
        async with asyncio.timeout(TIMEOUT_S):
            await self._writer.drain()

    async def receive(self, type: Any) -> Any:
        """Raises WrongCode if the other side has another key, JoinFailed for anything else that is not a message."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                (length,) = struct.unpack(">I", await self._reader.readexactly(4))
                if length > MAX_FRAME:
                    raise JoinFailed("the other side does not speak Outbid's join protocol")
                data = await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise JoinFailed("the other side closed the connection") from error
        except TimeoutError as error:
            raise JoinFailed("the other side fell silent") from error
        except OSError as error:
            raise JoinFailed(f"the connection broke: {error.strerror or error}") from error
        return self._decode(data, type)

    def _decode(self, data: bytes, type: Any) -> Any:
        if self._open is not None:
            try:
                data = self._open.decrypt(_nonce(self._received), data, None)
            except InvalidTag as error:
                raise WrongCode from error
            self._received += 1
        try:
            return msgspec.msgpack.decode(data, type=type)
        except msgspec.DecodeError as error:
            raise JoinFailed("the other side does not speak Outbid's join protocol") from error

    def key(self, shared: bytes, *, joiner: bool) -> None:
        """From here on everything is sealed."""
        to_inviter, to_joiner = (ChaCha20Poly1305(_derive(shared, way)) for way in (b"to inviter", b"to joiner"))
        self._seal, self._open = (to_inviter, to_joiner) if joiner else (to_joiner, to_inviter)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self._writer.wait_closed()


class Exchange:
    """SPAKE2 for one side. Both steps are some 15 ms of arithmetic: they run in a thread."""

    def __init__(self, secret: str, invitation: str, *, joiner: bool) -> None:
        self._secret, self._invitation, self._joiner = secret.encode(), invitation.encode(), joiner
        self._spake: Any = None

    async def start(self) -> bytes:
        return await asyncio.to_thread(self._start)

    def _start(self) -> bytes:
        import spake2  # 2 MiB, with what it loads: only for those who join or let join

        side = spake2.SPAKE2_A if self._joiner else spake2.SPAKE2_B
        self._spake = side(self._secret, idA=b"joiner " + self._invitation, idB=b"inviter")
        message: bytes = self._spake.start()
        return message

    async def finish(self, other: bytes) -> bytes:
        """The shared key. Raises JoinFailed for a message that is none."""
        try:
            shared: bytes = await asyncio.to_thread(self._spake.finish, other)
        except Exception as error:  # the library raises several kinds for malformed points
            raise JoinFailed("the other side does not speak Outbid's join protocol") from error
        return shared


def _derive(shared: bytes, way: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"outbid join 1 " + way).derive(shared)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
