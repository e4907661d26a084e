"""What a daemon and the process that keeps its history say to each other: MessagePack behind four bytes of length."""

from __future__ import annotations

from typing import Any, BinaryIO

import msgspec

LENGTH = 4
LARGEST = 256 * 2**20
"""A longer frame is a mistake."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the file is kept; see the section [history] of the configuration."""

    keep_days: float = 90.0
    keep_samples_days: float = 30.0
    keep_years: float = 10.0
    max_mib: int = 512


class Batch(_Frame, frozen=True):
    """Rows to be written: by table, each a JSON array of objects, and how many they are."""

    seq: int
    tables: dict[str, str]
    rows: int


class Read(_Frame, frozen=True):
    """One SELECT of ours."""

    id: int
    sql: str
    parameters: list[Any]


class Ask(_Frame, frozen=True):
    """Something that a part of the other side answers: see `process.ANSWERS`."""

    id: int
    verb: str
    payload: bytes


class Opened(_Frame, frozen=True):
    """Whether there is a file to write to, and what is or was wrong; at the beginning and whenever it changes."""

    usable: bool
    trouble: str


class Written(_Frame, frozen=True):
    """The batch is on the disk, but for `dropped` rows."""

    seq: int
    dropped: int


class Answer(_Frame, frozen=True):
    id: int
    payload: bytes


class Refused(_Frame, frozen=True):
    """No answer, and why: `unusable` if there is no history."""

    id: int
    why: str
    unusable: bool


Order = Batch | Read | Ask
Report = Opened | Written | Answer | Refused

_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_rows = msgspec.msgpack.Decoder(list[tuple[Any, ...]])
order_of = msgspec.msgpack.Decoder(Order).decode
report_of = msgspec.msgpack.Decoder(Report).decode


def framed(frame: Order | Report) -> bytes:
    data = _encoder.encode(frame)
    return len(data).to_bytes(LENGTH, "big") + data


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame of a blocking stream; None at its end."""
    head = stream.read(LENGTH)
    if len(head) < LENGTH:
        return None
    size = int.from_bytes(head, "big")
    data = stream.read(size)
    return data if len(data) == size else None


def pack_rows(rows: list[tuple[Any, ...]]) -> bytes:
    return _encoder.encode(rows)


def unpack_rows(payload: bytes) -> list[tuple[Any, ...]]:
    return _rows.decode(payload)
