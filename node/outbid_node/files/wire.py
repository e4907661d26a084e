"""A secret, authenticated stream between two nodes of one mesh: Noise NNpsk0 over TCP, in large frames.

The handshake is `Noise_NNpsk0_25519_<cipher>_SHA256` (noiseprotocol.org, revision 34) with a key derived from the mesh
key as the pre-shared one: whoever has it not gets no byte out of a door. Afterwards every frame is one message of the
cipher with a counter as its nonce, but longer than Noise's 64 KiB: in Python the time goes into calls, not into the
cipher (docs/decisions/0010-model-files.md). Blocking: for threads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import socket
import time
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from outbid_contracts.errors import OutbidError

FRAME_BYTES = 1024 * 1024
"""The most in one frame."""

TAG = 16
_HANDSHAKE = 32 + TAG
Cipher = Literal["AESGCM", "ChaChaPoly"]
_CIPHERS: dict[bytes, Cipher] = {b"A": "AESGCM", b"C": "ChaChaPoly"}


class WireError(OutbidError):
    """The other side is not of this mesh, went away, or broke the protocol."""

    code = "wire_error"


@functools.cache
def faster_cipher() -> Cipher:
    """AES where the processor has it built in (7 GB/s), ChaCha20 where not. Measured once, some milliseconds."""
    took: dict[Cipher, float] = {}
    data = bytes(256 * 1024)
    for name in _CIPHERS.values():
        seal = _aead(name, bytes(32)).encrypt
        began = time.perf_counter()
        for number in range(4):
            seal(number.to_bytes(12), data, None)
        took[name] = time.perf_counter() - began
    return min(took, key=lambda name: took[name])


class Wire:
    """One connection after the handshake. One thread may send while another receives."""

    def __init__(self, sock: socket.socket, cipher: Cipher, sending: bytes, receiving: bytes) -> None:
        self._socket = sock
        self._cipher: Cipher = cipher
        self._seal, self._sent = _aead(cipher, sending), 0
        self._open, self._received = _aead(cipher, receiving), 0
        self._buffer = bytearray(FRAME_BYTES + TAG)

    def send(self, data: bytes | memoryview) -> None:
        """One frame. Raises WireError or OSError (TimeoutError: nothing moved)."""
        self._sent += 1
        self._socket.sendall(self._seal.encrypt(_nonce(self._cipher, self._sent), data, None))

    def receive(self, length: int) -> bytes:
        """The next frame, which has `length` bytes. Raises WireError or OSError."""
        room = bytearray(length)
        self.receive_into(memoryview(room))
        return bytes(room)

    def receive_into(self, room: memoryview) -> None:
        """The next frame, which is as long as `room`. Raises WireError or OSError."""
        frame = memoryview(self._buffer)[: len(room) + TAG]
        _read_into(self._socket, frame)
        self._received += 1
        try:
            self._decrypt(_nonce(self._cipher, self._received), frame, room)
        except InvalidTag as error:
            raise WireError from error

    def _decrypt(self, nonce: bytes, frame: memoryview, room: memoryview) -> None:
        """Without a copy where this version of cryptography can (47 and later)."""
        if hasattr(self._open, "decrypt_into"):
            self._open.decrypt_into(nonce, frame, None, room)
        else:
            room[:] = self._open.decrypt(nonce, frame, None)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def knock(sock: socket.socket, key: bytes) -> Wire:
    """The side that connected. Raises WireError if the other one is not of the mesh, OSError."""
    cipher = faster_cipher()
    mark = next(mark for mark, name in _CIPHERS.items() if name == cipher)
    noise, mine = _Noise(cipher, key), X25519PrivateKey.generate()
    sock.sendall(mark + noise.write(mine))
    noise.read(_exactly(sock, _HANDSHAKE), mine)
    to_them, to_us = noise.split()
    return Wire(sock, cipher, to_them, to_us)


def answer(sock: socket.socket, key: bytes) -> Wire:
    """The side that listens. Raises WireError, having sent nothing, if the other one is not of the mesh; OSError."""
    cipher = _CIPHERS.get(_exactly(sock, 1))
    if cipher is None:
        raise WireError
    noise, mine = _Noise(cipher, key), X25519PrivateKey.generate()
    noise.read(_exactly(sock, _HANDSHAKE), None)
    sock.sendall(noise.write(mine))
    to_us, to_them = noise.split()
    return Wire(sock, cipher, to_them, to_us)


class _Noise:
    """The handshake state of NNpsk0: `psk, e` one way, `e, ee` the other, empty payloads."""

    def __init__(self, cipher: Cipher, psk: bytes) -> None:
        self._cipher: Cipher = cipher
        name = f"Noise_NNpsk0_25519_{cipher}_SHA256".encode()
        self._hash = name.ljust(32, b"\0") if len(name) <= 32 else hashlib.sha256(name).digest()
        self._chain = self._hash
        self._key, self._n = b"", 0
        self._theirs: X25519PublicKey | None = None
        self._mix_hash(b"outbid files 1")
        self._chain, mixed, self._key = _hkdf(self._chain, psk, 3)
        self._mix_hash(mixed)

    def write(self, mine: X25519PrivateKey) -> bytes:
        public = mine.public_key().public_bytes_raw()
        self._mix_hash(public)
        self._mix_key(public)
        if self._theirs is not None:
            self._mix_key(mine.exchange(self._theirs))
        tag = _aead(self._cipher, self._key).encrypt(_nonce(self._cipher, self._n), b"", self._hash)
        self._mix_hash(tag)
        return public + tag

    def read(self, message: bytes, mine: X25519PrivateKey | None) -> None:
        public, tag = message[:32], message[32:]
        self._mix_hash(public)
        self._mix_key(public)
        try:
            self._theirs = X25519PublicKey.from_public_bytes(public)
            if mine is not None:
                self._mix_key(mine.exchange(self._theirs))
            _aead(self._cipher, self._key).decrypt(_nonce(self._cipher, self._n), tag, self._hash)
        except (InvalidTag, ValueError) as error:
            raise WireError("the other side is not of this mesh") from error
        self._mix_hash(tag)

    def split(self) -> tuple[bytes, bytes]:
        """Keys of the side that connected, and of the one that listened."""
        first, second, *_ = _hkdf(self._chain, b"", 2)
        return first, second

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, data: bytes) -> None:
        self._chain, self._key, *_ = _hkdf(self._chain, data, 2)
        self._n = 0


def _hkdf(chain: bytes, data: bytes, count: int) -> list[bytes]:
    pseudorandom, out = hmac.digest(chain, data, "sha256"), [b""]
    for number in range(1, count + 1):
        out.append(hmac.digest(pseudorandom, out[-1] + bytes([number]), "sha256"))
    return out[1:]


def _aead(cipher: Cipher, key: bytes) -> AESGCM | ChaCha20Poly1305:
    return AESGCM(key) if cipher == "AESGCM" else ChaCha20Poly1305(key)


def _nonce(cipher: Cipher, number: int) -> bytes:
    """Noise counts in big-endian order for AES-GCM, in little-endian order for ChaCha20-Poly1305."""
    return bytes(4) + number.to_bytes(8, "big" if cipher == "AESGCM" else "little")


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    _read_into(sock, memoryview(data))
    return bytes(data)


def _read_into(sock: socket.socket, room: memoryview) -> None:
    while room:
        got = sock.recv_into(room)
        if got == 0:
            raise WireError("the other side closed the connection")
        room = room[got:]
