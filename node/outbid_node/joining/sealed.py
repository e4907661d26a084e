"""Sealed boxes: a message that only the holder of one private key can open (X25519, HKDF-SHA256, ChaCha20-Poly1305).

A new mesh key travels in one of these to each machine that stays, because a machine that must go can still read the
bus.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from outbid_contracts.errors import InvalidRequest

_NONCE = bytes(12)  # each box has a key of its own


def new_private() -> bytes:
    """32 random bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seal(message: bytes, public: bytes) -> bytes:
    """Raises InvalidRequest if `public` is no key."""
    ephemeral = X25519PrivateKey.generate()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise InvalidRequest("that is not a public key") from error
    mine = ephemeral.public_key().public_bytes_raw()
    return mine + ChaCha20Poly1305(_derive(shared, mine, public)).encrypt(_NONCE, message, None)


def unseal(box: bytes, private: bytes) -> bytes:
    """Raises InvalidRequest if the box was not made for this key, or was changed."""
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(box[:32]))
        return ChaCha20Poly1305(_derive(shared, box[:32], public_of(private))).decrypt(_NONCE, box[32:], None)
    except (InvalidTag, ValueError) as error:
        raise InvalidRequest("that box was not made for this node, or was changed on the way") from error


def _derive(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    info = b"outbid box 1" + ephemeral + recipient
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(shared)
