"""Files that jobs made, from outside: finding them, reading them in pieces, saving them.

Several ranges are on their way at once, because each passes the node that holds the artifact, the node that was asked,
and the servers between; those of this machine come straight from its ledger where the credentials allow that. What
breaks is asked for again from where it broke.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from outbid.direct import DirectReader
from outbid.patience import AWAY, Patience, insist
from outbid_contracts import artifacts as wire
from outbid_contracts import subjects
from outbid_contracts.errors import ChecksumMismatch, NodeUnreachable, OutbidError, StorageFailed, UnknownArtifact
from outbid_contracts.ids import JobId, NodeId

if TYPE_CHECKING:
    from outbid.mesh import Mesh

RANGE_BYTES = 4 * wire.PIECE_BYTES
"""One request for a part of an artifact asks for so much."""

RANGES = 4
"""So many requests are on their way at once: 16 MiB in memory at most."""

WAITING = 32
"""Pieces to be written and hashed in one go, at most."""

QUIET_S = 10.0
"""Without a piece for this long, the range is asked for again."""

_MAY_PASS = (*AWAY, UnknownArtifact, StorageFailed)
"""What is said of an artifact that was found while its node is away or has just come back."""


class Artifact:
    """A file that a job made: `name` suggests a file name, `type` is its media type, `size` in bytes, `node` holds it.

    `data` is its content, where that is small and came with a result.
    """

    def __init__(self, mesh: Mesh, facts: wire.Artifact) -> None:
        self._mesh = mesh
        self.facts = facts
        self._direct: DirectReader | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.type}, {self.size} bytes)"

    @property
    def id(self) -> wire.ArtifactId:
        return self.facts.id

    @property
    def job(self) -> JobId:
        return wire.job_of(self.facts.id)

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def type(self) -> str:
        return self.facts.type

    @property
    def size(self) -> int:
        return self.facts.size

    @property
    def sha256(self) -> str:
        return self.facts.sha256

    @property
    def node(self) -> NodeId:
        return self.facts.node

    @property
    def data(self) -> bytes | None:
        return self.facts.data

    async def read(self) -> bytes:
        """The whole content. Raises what `stream` raises."""
        if self.data is not None:
            return self.data
        return b"".join([piece async for piece in self.stream()])

    async def stream(self, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The content from `offset` on in pieces; one from the beginning ends with ChecksumMismatch if it is not what
        the job made. A lost connection or a node that restarts meanwhile is waited for.

        Raises UnknownArtifact or NodeUnreachable when its node has been away for the mesh's `owner_away_s`.
        """
        digest = hashlib.sha256()
        async with _Behind(digest.update) as hashing, aclosing(self._blocks(offset)) as blocks:
            async for block in blocks:
                if offset == 0:
                    await hashing.put(block)
                for piece in block:
                    yield piece
        if offset == 0 and digest.hexdigest() != self.sha256:
            raise self._mismatch()

    async def save(self, path: str | os.PathLike[str], *, resume: bool = True) -> Path:
        """Write it to `<path>.part`, and once its SHA-256 is right move that to `path`, replacing what is there.

        With `resume`, what an earlier try left in `<path>.part` is not fetched again. Raises OSError, and what `stream`
        raises; the part stays then, except after ChecksumMismatch.
        """
        path = Path(path)
        part = path.with_name(path.name + ".part")
        if not resume:
            part.unlink(missing_ok=True)
        if not await self._fetch(part) and not await self._fetch(part):  # the first may have gone on from a wrong part
            raise self._mismatch()
        await asyncio.to_thread(os.replace, part, path)
        return path

    async def _fetch(self, part: Path) -> bool:
        """Complete the part. If it is not what it should be it is removed, and the answer is False."""
        sink = await asyncio.to_thread(_Sink, part)
        try:
            async with _Behind(sink.take) as writing, aclosing(self._blocks(sink.offset)) as blocks:
                async for block in blocks:
                    await writing.put(block)
        finally:
            sink.file.close()
        if sink.digest.hexdigest() == self.sha256:
            return True
        await asyncio.to_thread(part.unlink)
        return False

    async def _blocks(self, offset: int) -> AsyncGenerator[Sequence[bytes], None]:
        """The content from `offset` on, some pieces at a time, while the next are on their way."""
        if self.data is not None:
            yield [self.data[offset:]]
            return
        if self.node == self._mesh.local and self.size - offset > RANGE_BYTES:
            self._direct = await DirectReader.open(await self._mesh.connected(), self.facts)
        starts = iter(range(offset, self.size, RANGE_BYTES))
        under_way: deque[asyncio.Task[Sequence[bytes]]] = deque()
        try:
            while True:
                while len(under_way) < RANGES and (start := next(starts, None)) is not None:
                    length = min(RANGE_BYTES, self.size - start)
                    under_way.append(asyncio.create_task(self._range(start, length)))
                if not under_way:
                    return
                yield await under_way[0]
                under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _range(self, offset: int, length: int) -> Sequence[bytes]:
        """One range, asked for again from where it broke off."""
        pieces: list[bytes] = []
        end, patience = offset + length, Patience(self._mesh.owner_away_s)
        while offset < end:
            direct = self._direct
            try:
                async with aclosing(direct.read(offset, end) if direct else self._read(offset, end)) as arriving:
                    async for piece in arriving:
                        pieces.append(piece)
                        offset += len(piece)
                        patience.renew()
                if offset < end:
                    raise NodeUnreachable(f"{self.id} broke off at byte {offset} of {self.size}")
            except OutbidError as error:
                if direct:
                    self._direct = None
                elif isinstance(error, _MAY_PASS):
                    await patience.after(error)
                else:
                    raise
        return pieces

    async def _read(self, offset: int, end: int) -> AsyncGenerator[bytes, None]:
        """One exchange. Raises NodeUnreachable where a piece is missing."""
        connection = await self._mesh.connected()
        question = wire.ReadArtifact(id=self.id, offset=offset, length=end - offset, node=self.node)
        stream = connection.pieces(subjects.artifacts("read"), question, idle_timeout_s=QUIET_S)
        async with aclosing(stream) as arriving:
            async for headers, data in arriving:
                if not data:
                    return
                if headers.get("Outbid-Offset") != str(offset):
                    raise NodeUnreachable(f"a part of {self.id} was lost on the way")
                offset += len(data)
                yield data

    def _mismatch(self) -> ChecksumMismatch:
        return ChecksumMismatch(f"what came of {self.id} is not what its job made: the SHA-256 differs")


class _Sink:
    """A file that is written and hashed at once, off the event loop; goes on with what is there of it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a+b")
        self.digest = hashlib.sha256()
        self.file.seek(0)
        while block := self.file.read(wire.PIECE_BYTES):
            self.digest.update(block)
        self.offset = self.file.tell()

    def take(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()
        self.digest.update(data)


class _Behind:
    """Does `work` with what comes, in a thread and some pieces at a time: whatever lets go of the interpreter's lock
    waits up to 5 ms to have it back, which with each piece by itself took twice as long as the transfer. On leaving
    all is done.
    """

    def __init__(self, work: Callable[[bytes], object]) -> None:
        self._work = work
        self._waiting: list[bytes] = []
        self._task: asyncio.Task[object] | None = None

    async def __aenter__(self) -> _Behind:
        return self

    async def put(self, block: Sequence[bytes]) -> None:
        """Raises what the work raised."""
        self._waiting += block
        if self._task is None or self._task.done() or len(self._waiting) >= WAITING:
            await self._next()

    async def _next(self) -> None:
        await self._settled()
        batch, self._waiting = self._waiting, []
        self._task = asyncio.create_task(asyncio.to_thread(self._do, batch))

    async def _settled(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._waiting:
            await self._next()
        await self._settled()

    def _do(self, batch: Sequence[bytes]) -> None:
        self._work(b"".join(batch))


async def find(mesh: Mesh, question: wire.FindArtifacts) -> wire.ArtifactList:
    found: wire.ArtifactList = await insist(mesh, subjects.artifacts("find"), question, wire.ArtifactList)
    return found


async def artifact(mesh: Mesh, id: str) -> Artifact:
    """Raises UnknownArtifact."""
    found = await find(mesh, wire.FindArtifacts(id=id))
    if not found.artifacts:
        away = f" ({', '.join(found.silent)} did not answer)" if found.silent else ""
        raise UnknownArtifact(f"no node of this mesh has artifact {id}{away}")
    return Artifact(mesh, found.artifacts[0])


async def artifacts_of(mesh: Mesh, job: str | None) -> list[Artifact]:
    """Those of the newest attempt that made any, in order: a stale attempt may have left some too."""
    if job is None:
        return [Artifact(mesh, one) for one in (await find(mesh, wire.FindArtifacts())).artifacts]
    found = (await find(mesh, wire.FindArtifacts(job=JobId(job)))).artifacts
    newest = max((_number(one.id)[0] for one in found), default=0)
    mine = sorted((one for one in found if _number(one.id)[0] == newest), key=lambda one: _number(one.id))
    return [Artifact(mesh, one) for one in mine]


def named_in(result: Mapping[str, Any]) -> list[wire.Artifact]:
    """The files that a job's result lists, whatever kind of job it was."""
    found: list[wire.Artifact] = []
    for value in result.values():
        with suppress(msgspec.ValidationError):
            found += msgspec.convert(value, tuple[wire.Artifact, ...])
    return found


def _number(id: wire.ArtifactId) -> tuple[int, int]:
    """Attempt and place in it."""
    _, attempt, place = id.rsplit(".", 2)
    return int(attempt), int(place)
