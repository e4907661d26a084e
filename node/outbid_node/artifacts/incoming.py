"""An artifact on its way into the store."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from outbid_contracts.artifacts import PIECE_BYTES, Artifact
from outbid_contracts.errors import ChecksumMismatch
from outbid_node.artifacts.objects import NO_ANSWER, ChunkWriter, new_nuid
from outbid_node.artifacts.shelf import Description

if TYPE_CHECKING:
    from outbid_node.artifacts.store import ArtifactStore

SWEEPS = 2
"""After trouble: the first may overtake a chunk that a server which was frozen has still to store."""

THREAD_BYTES = 64 * 1024
"""Hashing more than this (0.1 ms and up) is done in a thread."""


class Incoming:
    """`write` all its pieces in order (PIECE_BYTES each but the last), then `finish`; or `abort`, at any moment."""

    def __init__(self, store: ArtifactStore, said: Description) -> None:
        self.said = said
        self.nuid = new_nuid()
        self.size = 0
        self._store = store
        self._hash = hashlib.sha256()
        self._writer = ChunkWriter(store.bucket, self.nuid)
        self._last = b""
        self._finishing: asyncio.Task[Artifact] | None = None

    async def write(self, piece: bytes) -> None:
        """Returns when it is under way to the disk. Raises NoSpace, StorageFailed."""
        self.size += len(piece)
        await hash_in(self._hash, piece)
        if self.said.size <= PIECE_BYTES:
            self._last = piece
            return
        try:
            await self._writer.write(piece)
        except NO_ANSWER as error:
            raise self._store.failure(error) from error

    async def finish(self) -> Artifact:
        """Returns when it is on disk, and to be found. Raises ChecksumMismatch, NoSpace, StorageFailed."""
        if self.size != self.said.size or self._hash.hexdigest() != self.said.sha256:
            raise ChecksumMismatch(f"what came of artifact {self.said.id} is not what was said: its SHA-256 differs")
        self._finishing = asyncio.create_task(self._commit())
        return await asyncio.shield(self._finishing)

    async def _commit(self) -> Artifact:
        said, store = self.said, self._store
        try:
            meta = said.meta(store.bucket.name, self.nuid, await self._writer.sealed())
            if said.size <= PIECE_BYTES:
                await store.bucket.put(meta, self._last)
            else:
                await store.bucket.commit(meta)
        except NO_ANSWER as error:
            store.sweeps = SWEEPS  # it may be there all the same
            raise store.failure(error) from error
        artifact = await store.keep(meta)
        store.incoming.discard(self)
        return artifact

    async def abort(self) -> None:
        """Leave nothing behind. Does nothing to what is finished."""
        if self in self._store.incoming:
            await asyncio.shield(asyncio.ensure_future(self._abort()))

    async def _abort(self) -> None:
        if self._finishing is not None:
            await asyncio.wait({self._finishing})
        if self in self._store.incoming:
            if not await self._writer.abort():
                self._store.sweeps = SWEEPS
            self._store.incoming.discard(self)


async def hash_in(hash: hashlib._Hash, data: bytes) -> None:
    """Without holding up the loop."""
    if len(data) > THREAD_BYTES:
        await asyncio.to_thread(hash.update, data)
    else:
        hash.update(data)
