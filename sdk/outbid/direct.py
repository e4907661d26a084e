"""The quick way to an artifact that lies on this machine: its chunks straight from JetStream, past the daemon.

The layout is that of NATS' object store (ADR-20): an object's meta under `$O.<bucket>.M.<name in base64url>`, its
chunks under `$O.<bucket>.C.<nuid>`, read in batches (ADR-31). Where they are in the stream is in the meta (`seqs`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from outbid.connection import Connection
from outbid_contracts.artifacts import PIECE_BYTES, Artifact
from outbid_contracts.errors import NodeUnreachable, OutbidError

ANSWER_S = 3.0
"""A local server answers within milliseconds; after this the way by the daemon is taken."""


class _Meta(msgspec.Struct, frozen=True):
    nuid: str
    size: int
    metadata: dict[str, str] = {}


class DirectReader:
    """`read` raises OutbidError where this way ends; the daemon may still give what is missing."""

    def __init__(self, connection: Connection, facts: Artifact, meta: _Meta) -> None:
        self.connection = connection
        self._request = f"$JS.API.DIRECT.GET.OBJ_{facts.bucket}"
        self._chunks = f"$O.{facts.bucket}.C.{meta.nuid}"
        self._seqs = sequences(meta.metadata["seqs"])

    @classmethod
    async def open(cls, connection: Connection, facts: Artifact) -> DirectReader | None:
        """None where these credentials do not allow it, or the artifact is stored otherwise."""
        name = base64.urlsafe_b64encode(facts.id.encode()).decode()
        question = {"last_by_subj": f"$O.{facts.bucket}.M.{name}"}
        try:
            data = await _first(connection, f"$JS.API.DIRECT.GET.OBJ_{facts.bucket}", question)
            meta = msgspec.json.decode(data, type=_Meta)
            reader = cls(connection, facts, meta)
        except (OutbidError, msgspec.DecodeError, KeyError, ValueError):
            return None
        whole = meta.size == facts.size and len(reader._seqs) == -(-facts.size // PIECE_BYTES)
        return reader if whole else None

    async def read(self, offset: int, end: int) -> AsyncGenerator[bytes, None]:
        first, last = offset // PIECE_BYTES, (end - 1) // PIECE_BYTES
        question = {"seq": self._seqs[first], "next_by_subj": self._chunks, "batch": last - first + 1}
        async with aclosing(_ask(self.connection, self._request, question)) as arriving:
            async for headers, data in arriving:
                number = offset // PIECE_BYTES
                if "Status" in headers or offset >= end:
                    break
                if headers.get("Nats-Sequence") != str(self._seqs[number]):
                    raise NodeUnreachable("a chunk of the artifact was lost on the way")
                piece = data[offset % PIECE_BYTES : end - number * PIECE_BYTES]
                offset += len(piece)
                yield piece


def sequences(ranges: str) -> list[int]:
    """
    >>> sequences("5-7,9")
    [5, 6, 7, 9]
    """
    spans = [part.partition("-") for part in ranges.split(",")]
    return [seq for first, _, last in spans for seq in range(int(first), int(last or first) + 1)]


def _ask(connection: Connection, subject: str, question: dict[str, Any]) -> AsyncGenerator[tuple[Any, bytes], None]:
    return connection.pieces(subject, json.dumps(question).encode(), idle_timeout_s=ANSWER_S)


async def _first(connection: Connection, subject: str, question: dict[str, Any]) -> bytes:
    async with aclosing(_ask(connection, subject, question)) as arriving:
        async for _, data in arriving:
            return data
    return b""
