"""Artifacts that other nodes upload to this one (`mesh.node.<me>.artifact`)."""

from __future__ import annotations

import asyncio
import re
import time

from outbid_contracts.artifacts import PIECE_BYTES, Artifact, ArtifactId, PutArtifact, PutReply, is_artifact_id, job_of
from outbid_contracts.errors import Busy, Cancelled, InvalidRequest, OutbidError
from outbid_node.artifacts.incoming import Incoming
from outbid_node.artifacts.shelf import Description
from outbid_node.artifacts.store import ArtifactStore

AHEAD = 32
"""Pieces of one upload that may have overtaken the next one."""

UPLOADS = 32
IDLE_S = 30.0
"""Without a piece for so long, the node that sent them is gone."""

LOOK_S = 5.0

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")
_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}")


class Receiver:
    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._uploads: dict[ArtifactId, Upload] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            limit = time.monotonic() - IDLE_S
            for id, upload in list(self._uploads.items()):
                if upload.touched < limit:
                    await self._give_up(id, Cancelled("nothing more came of it"))

    async def take(self, put: PutArtifact) -> PutReply:
        """One piece. Raises InvalidRequest for one that cannot be, ChecksumMismatch, and what `ArtifactStore.put`
        does; then nothing of the upload is left.
        """
        said = described(put)
        if (known := await self._store.find(put.id)) is not None:
            if known.sha256 != put.sha256:
                raise InvalidRequest(f"artifact {put.id} is here already, with another content")
            return PutReply(artifact=known)
        upload = self._uploads.get(put.id) or await self._begin(said)
        if upload.said != said:
            raise InvalidRequest(f"this piece is not of the upload of {put.id} that is under way")
        try:
            artifact = await upload.take(put.offset, put.data)
        except OutbidError as error:
            await self._give_up(put.id, error)
            raise
        if artifact is not None:
            self._uploads.pop(put.id, None)
        return PutReply(artifact=artifact)

    async def _begin(self, said: Description) -> Upload:
        if len(self._uploads) >= UPLOADS:
            raise Busy("this node takes in as many artifacts as it can; try again shortly")
        upload = self._uploads[said.id] = Upload(self._store, said)
        job, attempt = job_of(said.id), _attempt(said.id)
        stale = [id for id in self._uploads if job_of(id) == job and _attempt(id) < attempt]
        for id in stale:
            await self._give_up(id, Cancelled(f"there is a newer attempt at job {job}"))
        return upload

    async def _give_up(self, id: ArtifactId, why: OutbidError) -> None:
        upload = self._uploads.pop(id, None)
        if upload is not None:
            await upload.give_up(why)


class Upload:
    """The pieces of one artifact; they are written in order, one at a time."""

    def __init__(self, store: ArtifactStore, said: Description) -> None:
        self.said = said
        self.touched = time.monotonic()
        self._store = store
        self._lock = asyncio.Lock()
        self._next = 0
        self._waiting: dict[int, bytes] = {}
        self._incoming: Incoming | None = None
        self._error: OutbidError | None = None

    async def take(self, offset: int, data: bytes) -> Artifact | None:
        """The artifact, once this piece has made it whole and it is on disk."""
        self.touched = time.monotonic()
        if offset > self._next + AHEAD * PIECE_BYTES:
            raise InvalidRequest(f"the piece at {offset} is too far ahead of {self._next}")
        if offset >= self._next:
            self._waiting[offset] = data
        async with self._lock:
            if self._error is not None:
                raise self._error
            return await self._write()

    async def _write(self) -> Artifact | None:
        if self._incoming is None:
            self._incoming = await self._store.begin(self.said)
        came = False
        while (piece := self._waiting.pop(self._next, None)) is not None:
            self._next += len(piece)
            came = True
            await self._incoming.write(piece)
            if self._next == self.said.size:
                break
        return await self._incoming.finish() if came and self._next == self.said.size else None

    async def give_up(self, why: OutbidError) -> None:
        self._error = self._error or why
        async with self._lock:
            if self._incoming is not None:
                await self._incoming.abort()


def described(put: PutArtifact) -> Description:
    """What it says of the whole. Raises InvalidRequest if this piece cannot be one of it."""
    if not is_artifact_id(put.id) or job_of(put.id) != put.job:
        raise InvalidRequest(f"{put.id[:80]!r} is not the id of an artifact of job {put.job[:80]!r}")
    if not _SHA256.fullmatch(put.sha256):
        raise InvalidRequest("`sha256` must be 64 hex digits")
    if not _NAME.fullmatch(put.name) or not _TYPE.fullmatch(put.type):
        raise InvalidRequest("`name` must be a file's name without a folder, `type` a media type")
    length = min(PIECE_BYTES, put.size - put.offset)
    if put.size < 0 or put.offset < 0 or put.offset % PIECE_BYTES or len(put.data) != length:
        raise InvalidRequest(
            f"a piece of {len(put.data)} bytes at {put.offset} does not belong to an artifact of {put.size} bytes"
        )
    return Description(put.id, put.owner, put.name, put.type, put.size, put.sha256, put.keep_s)


def _attempt(id: ArtifactId) -> int:
    return int(id.rsplit(".", 2)[1])
