"""The mesh key, and the keys derived from it. Pure: the same key gives the same keys on every machine.

A mesh is nothing but 32 random bytes. Whoever has them can issue any certificate and any credentials of the mesh, so
no machine is special; to lose them means to make new ones (`outbid rekey`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from functools import cached_property

import nkeys

SIZE = 32
_SALT = b"outbid mesh key 1"
_MARK = "outbid1-"
_CHECK = 4


class SigningKey:
    """An Ed25519 key pair in NATS' notation: `public` (O…, A…, U…) and `seed` (SO…, SA…, SU…)."""

    def __init__(self, raw: bytes, prefix: int) -> None:
        self._pair = nkeys.from_seed(nkeys.encode_seed(raw, prefix))
        self.public = bytes(self._pair.public_key).decode().rstrip("=")

    def sign(self, data: bytes) -> bytes:
        return bytes(self._pair.sign(data))

    @property
    def seed(self) -> str:
        """Secret."""
        return bytes(self._pair.seed).decode()

    def __repr__(self) -> str:
        return f"SigningKey({self.public})"


@dataclass(frozen=True)
class MeshKey:
    """Secret. `repr` and logs show the public id only."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) != SIZE:
            raise ValueError(f"a mesh key has {SIZE} bytes, not {len(self.raw)}")

    @classmethod
    def new(cls) -> MeshKey:
        return cls(secrets.token_bytes(SIZE))

    @classmethod
    def from_text(cls, text: str) -> MeshKey:
        """The key that `text()` wrote. Raises ValueError if it is damaged."""
        body = text.strip()
        if not body.startswith(_MARK):
            raise ValueError(f"a mesh key begins with {_MARK}")
        digits = body.removeprefix(_MARK).upper()
        key = cls(base64.b32decode(digits + "=" * (-len(digits) % 8))[:SIZE])
        if key.text() != body.lower():
            raise ValueError("the mesh key is damaged: its checksum is wrong")
        return key

    def text(self) -> str:
        """Secret. The key with a checksum, as one word: `outbid1-…`."""
        return _MARK + base64.b32encode(self.raw + _checksum(self.raw)).decode().rstrip("=").lower()

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose: HKDF-SHA256 (RFC 5869) with `purpose` as its info."""
        pseudorandom = hmac.digest(_SALT, self.raw, "sha256")
        return hmac.digest(pseudorandom, purpose.encode() + b"\x01", "sha256")

    @cached_property
    def id(self) -> str:
        """Public: twelve letters and digits (60 bits) that name the mesh on the network."""
        digest = hashlib.sha256(self.operator.public.encode()).digest()
        return base64.b32encode(digest).decode()[:12].lower()

    @cached_property
    def operator(self) -> SigningKey:
        return SigningKey(self.derive("operator"), nkeys.PREFIX_BYTE_OPERATOR)

    @cached_property
    def system_account(self) -> SigningKey:
        return SigningKey(self.derive("account system"), nkeys.PREFIX_BYTE_ACCOUNT)

    @cached_property
    def account(self) -> SigningKey:
        return SigningKey(self.derive("account mesh"), nkeys.PREFIX_BYTE_ACCOUNT)

    def role(self, name: str) -> SigningKey:
        """Signs the credentials of this role."""
        return SigningKey(self.derive(f"role {name}"), nkeys.PREFIX_BYTE_ACCOUNT)

    def user(self, name: str) -> SigningKey:
        """The key of a user that belongs to a node: the same at every start, so that its inbox keeps its name."""
        return SigningKey(self.derive(f"user {name}"), nkeys.PREFIX_BYTE_USER)


def new_user() -> SigningKey:
    """A key for credentials that are handed out."""
    return SigningKey(secrets.token_bytes(SIZE), nkeys.PREFIX_BYTE_USER)


def _checksum(raw: bytes) -> bytes:
    return hashlib.sha256(_SALT + raw).digest()[:_CHECK]
