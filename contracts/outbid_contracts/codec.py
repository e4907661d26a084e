"""JSON and MessagePack from the same declarations.

Faces choose by `Content-Type`; nodes speak MessagePack among themselves. Unknown fields of a message are ignored
(a newer peer may send them); unknown parameters of a request are refused unless the request says it is newer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from outbid_contracts.errors import InvalidRequest

T = TypeVar("T")

VERSION = 1
"""Version of the wire contract. A peer that says a higher one may send fields this one does not know."""


class Format(StrEnum):
    JSON = "application/json"
    MSGPACK = "application/msgpack"
    TEXT = "text/plain"


def format_of(content_type: str | None, data: bytes) -> Format:
    """The format of a request body: what its `Content-Type` says, else JSON if it looks like an object, else text."""
    if content_type:
        name = content_type.partition(";")[0].strip().lower()
        if name in ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack"):
            return Format.MSGPACK
        if name == "application/json":
            return Format.JSON
        if name.startswith("text/"):
            return Format.TEXT
        raise InvalidRequest(
            f"Content-Type {content_type!r} is not known; use application/json, application/msgpack or text/plain"
        )
    return Format.JSON if data[:64].lstrip()[:1] == b"{" else Format.TEXT


def encode(message: Any, format: Format = Format.MSGPACK) -> bytes:
    return msgspec.json.encode(message) if format is Format.JSON else msgspec.msgpack.encode(message)


def decode(data: bytes, type: Any, format: Format = Format.MSGPACK) -> Any:
    """Decode `data` as `type`. Raises InvalidRequest, whose message says where the data is wrong."""
    try:
        if format is Format.JSON:
            return msgspec.json.decode(data, type=type)
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"not valid {format.value}: {error}") from error
