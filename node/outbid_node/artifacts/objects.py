"""A bucket of JetStream's object store (ADR-20), by JetStream's own requests, so that `nats object` reads it too.

An object is chunks (messages on `$O.<bucket>.C.<nuid>`) and, once they are all stored, its meta
(`$O.<bucket>.M.<name in base64url>`), which replaces the one before: without a meta there is no object. Nothing is
removed by limits of the stream, only by purges: what a limit removes comes back when the server is killed
(see `durable.stream.bucket`), what a purge removes does not (measured with 2.15.1).

Every call raises what `Stream` does.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from outbid_contracts.artifacts import PIECE_BYTES
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.stream import ApiError, Outgoing, Stored, Stream

log = logging.getLogger(__name__)

WINDOW = 6
"""Chunks on their way to the disk at once. Measured: 171 MB/s with 1, 210 with 4, 221 with 8, 146 with 16."""

PATIENCE_S = 10.0
"""A window of chunks may take that long to be synced (an SD card writes 10 MB/s)."""

NO_ANSWER = (TimeoutError, NoResponders, ApiError)


class Options(msgspec.Struct, frozen=True):
    max_chunk_size: int = PIECE_BYTES


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """ObjectInfo of ADR-20. `metadata["seqs"]`: where its chunks are in the stream, as ranges ("5-30,32")."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str = ""
    deleted: bool = False
    options: Options = Options()
    metadata: dict[str, str] = {}


class Bucket:
    def __init__(self, bus: Bus, name: str) -> None:
        self.name = name
        self.stream = Stream(bus, f"OBJ_{name}")

    async def ensure(self) -> None:
        await self.stream.ensure(
            {
                "subjects": [self.chunks_of(">"), f"$O.{self.name}.M.>"],
                "storage": "file",
                "discard": "new",
                "allow_direct": True,
                "allow_rollup_hdrs": True,
                "allow_atomic": True,
            }
        )

    def chunks_of(self, nuid: str) -> str:
        return f"$O.{self.name}.C.{nuid}"

    def meta_of(self, name: str) -> str:
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    # -- writing -------------------------------------------------------------------------------------------------

    async def put(self, meta: Meta, data: bytes) -> None:
        """A small object, of one chunk or none: all or nothing, in one go."""
        messages = [Outgoing(self.chunks_of(meta.nuid), data)] if data else []
        await self.stream.store([*messages, self._commit(meta)])

    async def commit(self, meta: Meta) -> None:
        """All its chunks are stored."""
        await self.stream.store([self._commit(meta)])

    def _commit(self, meta: Meta) -> Outgoing:
        return Outgoing(self.meta_of(meta.name), msgspec.json.encode(meta))

    async def remove(self, name: str, nuid: str) -> None:
        await self.stream.purge(self.meta_of(name))  # first: chunks without a meta are found again, see `ArtifactStore`
        await self.drop_chunks(nuid)

    async def drop_chunks(self, nuid: str) -> None:
        await self.stream.purge(self.chunks_of(nuid))

    # -- reading -------------------------------------------------------------------------------------------------

    async def metas(self) -> AsyncIterator[Meta]:
        """Of all objects, oldest first. Unreadable ones are left out."""
        for stored in await self.stream.newest(f"$O.{self.name}.M.>"):
            try:
                yield msgspec.json.decode(stored.data, type=Meta)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.warning("%s is not readable: %s", stored.subject, error, extra={"action": "artifact_broken"})

    async def chunk_counts(self) -> dict[str, int]:
        """How many chunks there are, by nuid."""
        found: dict[str, int] = {}
        while True:
            asked = {"subjects_filter": self.chunks_of(">"), "offset": len(found)}
            told = await self.stream.ask(f"STREAM.INFO.{self.stream.name}", asked)
            part = told["state"].get("subjects") or {}
            found |= {subject.rpartition(".")[2]: count for subject, count in part.items()}
            if not part or len(found) >= told.get("total", 0):
                return found

    async def chunks(self, nuid: str, seq: int, count: int) -> list[Stored]:
        return await self.stream.read_next(self.chunks_of(nuid), seq, count)


class ChunkWriter:
    """Chunks of one object, several on their way at once. Then either `sealed` or `abort`."""

    def __init__(self, bucket: Bucket, nuid: str) -> None:
        self.nuid = nuid
        self._bucket = bucket
        self._room = asyncio.Semaphore(WINDOW)
        self._sent: list[asyncio.Task[int]] = []
        self._failed: BaseException | None = None

    async def write(self, chunk: bytes) -> None:
        """Returns when it is under way. Raises what an earlier one failed with."""
        await self._room.acquire()
        if self._failed is not None:
            raise self._failed
        self._sent.append(asyncio.create_task(self._store(chunk)))

    async def _store(self, chunk: bytes) -> int:
        try:
            return await self._bucket.stream.add(self._bucket.chunks_of(self.nuid), chunk, patience_s=PATIENCE_S)
        except BaseException as error:
            self._failed = self._failed or error
            raise
        finally:
            self._room.release()

    async def sealed(self) -> list[int]:
        """The sequences of all chunks, once they are on disk."""
        return list(await asyncio.gather(*self._sent))

    async def abort(self) -> bool:
        """Leave nothing of it. False: something may be left."""
        stored = await asyncio.gather(*self._sent, return_exceptions=True)  # first: a purge may overtake a chunk
        try:
            if self._sent:
                await self._bucket.drop_chunks(self.nuid)
        except NO_ANSWER:
            return False
        return not any(isinstance(one, BaseException) for one in stored)


def new_nuid() -> str:
    """22 characters, as NATS' own."""
    return secrets.token_hex(11)


def digest_of(sha256: str) -> str:
    """The hex digest as ADR-20 writes it."""
    return "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode()


def sha256_of(digest: str) -> str:
    """Raises ValueError."""
    return base64.urlsafe_b64decode(digest.removeprefix("SHA-256=")).hex()


def now_text() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def as_ranges(seqs: Sequence[int]) -> str:
    """[5, 6, 7, 9] -> "5-7,9"."""
    runs: list[list[int]] = []
    for seq in seqs:
        if runs and seq == runs[-1][1] + 1:
            runs[-1][1] = seq
        else:
            runs.append([seq, seq])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def nth(ranges: str, number: int) -> int:
    """The number-th sequence of `as_ranges`' text; 1, from where a search also finds it, if there is none."""
    for first, last in _spans(ranges):
        if number <= last - first:
            return first + number
        number -= last - first + 1
    return 1


def _spans(ranges: str) -> Iterable[tuple[int, int]]:
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        yield int(first), int(last or first)
