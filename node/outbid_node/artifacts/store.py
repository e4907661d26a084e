"""The artifacts this node holds: its bucket `ARTIFACTS_<node>`, and what goes when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from outbid_contracts.artifacts import PIECE_BYTES, Artifact, ArtifactId, bucket_of
from outbid_contracts.errors import NoSpace, OutbidError, StorageFailed, UnknownArtifact
from outbid_contracts.ids import NodeId
from outbid_node.artifacts.incoming import SWEEPS, Incoming
from outbid_node.artifacts.limits import Limits
from outbid_node.artifacts.objects import NO_ANSWER, Bucket, Meta, nth
from outbid_node.artifacts.shelf import Description, Kept, Shelf
from outbid_node.client import Bus
from outbid_node.durable.stream import ApiError

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often it is looked whether something has expired."""

RETRY_S = 0.5
READY_S = 10.0
"""How long a request waits for a node that has just started to read its bucket."""

CHUNKS_AT_ONCE = 4
"""Of one read, in memory."""

NO_ROOM = (10023, 10047, 10077)
"""JetStream's numbers for: insufficient resources, insufficient storage, maximum bytes exceeded."""


class ArtifactStore:
    """`run` as a task; requests that come before it has read the bucket wait for that."""

    def __init__(self, *, bus: Bus, node: NodeId, limits: Limits, trouble: Callable[[], str | None]) -> None:
        """`trouble` says why nothing can be written to this node's disk."""
        self.node = node
        self.limits = limits
        self.bucket = Bucket(bus, bucket_of(node))
        self.shelf = Shelf()
        self.ready = asyncio.Event()
        self.incoming: set[Incoming] = set()
        self.sweeps = SWEEPS
        """So many more are due: chunks of something that was cut off may be there."""
        self._trouble = trouble
        self._foreign: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while not self.ready.is_set():
            try:
                await self._open()
            except NO_ANSWER as error:
                level = logging.DEBUG if self._trouble() else logging.WARNING
                log.log(level, "artifacts cannot be read yet: %s", error, extra={"action": "artifacts_unread"})
                await asyncio.sleep(RETRY_S)
        while True:
            if self.sweeps:
                await self._sweep()
            await asyncio.sleep(LOOK_S)
            for id in self.shelf.expired(self.limits.keep_s):
                await self.remove(id)

    async def _open(self) -> None:
        await self.bucket.ensure()
        counts = await self.bucket.chunk_counts()
        metas = [meta async for meta in self.bucket.metas()]
        for meta in sorted(metas, key=lambda meta: meta.mtime):
            await self._take_stock(meta, counts.get(meta.nuid, 0))
        self.ready.set()

    async def _take_stock(self, meta: Meta, chunks: int) -> None:
        kept = Kept.of(meta, self.node)
        if kept is None:
            self._foreign.add(meta.nuid)
        elif chunks == meta.chunks:
            self.shelf.add(kept)
        else:
            log.warning("artifact %s is not whole", meta.name, extra={"action": "artifact_broken"})
            await self.bucket.remove(meta.name, meta.nuid)

    async def until_ready(self) -> None:
        """Raises StorageFailed if the bucket is not read within READY_S."""
        if self.ready.is_set():
            return
        try:
            async with asyncio.timeout(0.1 if self._trouble() else READY_S):
                await self.ready.wait()
        except TimeoutError:
            why = self._trouble() or "the ledger does not answer"
            raise StorageFailed(f"this node cannot read its artifacts: {why}") from None

    async def _sweep(self) -> None:
        """Remove chunks that belong to nothing, and objects that this node was told cannot be written."""
        try:
            counts = await self.bucket.chunk_counts()
            metas = [meta async for meta in self.bucket.metas()]
            known = self.shelf.nuids() | self._foreign | {incoming.nuid for incoming in self.incoming}
            for meta in metas:
                if meta.nuid not in known:
                    await self.bucket.remove(meta.name, meta.nuid)
            for nuid in counts.keys() - known:
                await self.bucket.drop_chunks(nuid)
                log.info("removed what was left of a cut off artifact", extra={"action": "artifact_swept"})
            self.sweeps -= 1
        except NO_ANSWER as error:
            log.debug("not swept: %s", error, extra={"action": "artifacts_unswept"})

    # -- in ------------------------------------------------------------------------------------------------------

    async def put(self, said: Description, data: bytes) -> Artifact:
        """Keep it; returns when it is on disk. Raises NoSpace, PayloadTooLarge, StorageFailed."""
        incoming = await self.begin(said)
        try:
            for start in range(0, len(data), PIECE_BYTES):
                await incoming.write(bytes(data[start : start + PIECE_BYTES]))  # it may be a memoryview
            return await incoming.finish()
        except BaseException:
            await incoming.abort()
            raise

    async def begin(self, said: Description) -> Incoming:
        """Room for it, to be filled piece by piece. Raises as `put`."""
        await self.until_ready()
        if why := self._trouble():
            raise StorageFailed(why)
        incoming = Incoming(self, said)
        self.incoming.add(incoming)
        try:
            coming = sum(other.said.size for other in self.incoming)
            await asyncio.to_thread(self.limits.check, said.size, coming - said.size)
            for id in self.shelf.oldest(self.shelf.held_bytes + coming - self.limits.most_bytes):
                await self.remove(id)
        except BaseException:
            self.incoming.discard(incoming)
            raise
        return incoming

    async def keep(self, meta: Meta) -> Artifact:
        """It is on disk."""
        kept = Kept.of(meta, self.node)
        assert kept is not None
        before = self.shelf.add(kept)
        if before is not None and before.nuid != kept.nuid:
            try:
                await self.bucket.drop_chunks(before.nuid)
            except NO_ANSWER:
                self.sweeps = SWEEPS
        return kept.artifact

    def failure(self, error: Exception) -> OutbidError:
        """What went wrong with writing, for people."""
        if isinstance(error, ApiError) and error.err_code in NO_ROOM:
            return NoSpace(f"the ledger of this node has no room for the artifact: {error.message}")
        return StorageFailed(f"the artifact cannot be written: {self._trouble() or error}")

    async def remove(self, id: ArtifactId) -> None:
        kept = self.shelf.pop(id)
        if kept is None:
            return
        try:
            await self.bucket.remove(id, kept.nuid)
        except NO_ANSWER as error:
            self.sweeps = SWEEPS
            log.warning("%s is not removed yet: %s", id, error, extra={"action": "artifact_not_removed"})

    # -- out -----------------------------------------------------------------------------------------------------

    async def find(self, id: ArtifactId) -> Artifact | None:
        """Raises StorageFailed."""
        await self.until_ready()
        kept = self.shelf.get(id)
        return kept.artifact if kept is not None else None

    async def read(self, id: ArtifactId, offset: int, length: int) -> AsyncIterator[tuple[int, bytes]]:
        """(offset, piece) in order; pieces have PIECE_BYTES or less. Raises UnknownArtifact, StorageFailed."""
        await self.until_ready()
        kept = self.shelf.get(id)
        if kept is None:
            raise UnknownArtifact(f"node has no artifact {id!r} (any more)")
        end = min(kept.artifact.size, offset + length)
        seq = nth(kept.seqs, offset // PIECE_BYTES)
        while offset < end:
            number = offset // PIECE_BYTES
            count = min(CHUNKS_AT_ONCE, -(-end // PIECE_BYTES) - number)
            chunks = await self._chunks(kept, seq, count)
            for chunk in chunks:
                start = offset % PIECE_BYTES
                piece = chunk[start : start + end - offset]
                yield offset, piece
                offset += len(piece)
            seq = nth(kept.seqs, number + count)

    async def _chunks(self, kept: Kept, seq: int, count: int) -> list[bytes]:
        try:
            chunks = [stored.data for stored in await self.bucket.chunks(kept.nuid, seq, count)]
        except NO_ANSWER as error:
            raise StorageFailed(f"artifact {kept.artifact.id} cannot be read now: {error}") from error
        if len(chunks) < count:
            raise UnknownArtifact(f"artifact {kept.artifact.id} was removed while it was read")
        return chunks
