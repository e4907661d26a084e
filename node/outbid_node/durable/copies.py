"""Copies of other nodes' durable jobs on this node's disk: KV bucket `MIRROR_<node>`.

Key `job.<owner>.<job>` has an encoded DurableJob, or nothing once the job was taken over; key `owner.<owner>` the state
of that owner's `Holding`. This node is the only writer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from outbid_contracts.errors import StorageFailed
from outbid_contracts.ids import JobId, NodeId
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.entry import purge
from outbid_node.durable.holding import Write
from outbid_node.durable.stream import NOT_FOUND, ApiError, Outgoing, Stored, Stream, bucket

AT_ONCE = 900
"""Changes in one atomic batch, which may have 1000."""

BATCH_BYTES = 6 * 2**20

FAILURES = (TimeoutError, NoResponders, ApiError)


class Copies:
    def __init__(self, bus: Bus, node: NodeId) -> None:
        self._stream = Stream(bus, f"KV_MIRROR_{node}")
        self._prefix = f"$KV.MIRROR_{node}."
        self._is_made = False

    async def exists(self) -> bool:
        """Whether this node ever was a keeper. Raises StorageFailed."""
        try:
            await self._stream.ask(f"STREAM.INFO.{self._stream.name}", {})
        except ApiError as error:
            if error.err_code == NOT_FOUND:
                return False
            raise _failed(error) from error
        except (TimeoutError, NoResponders) as error:
            raise _failed(error) from error
        return True

    async def make(self) -> None:
        """Make the bucket. Raises StorageFailed."""
        try:
            await self._stream.ensure(bucket(self._prefix))
        except FAILURES as error:
            raise _failed(error) from error
        self._is_made = True

    async def write(self, owner: NodeId, writes: Sequence[Write]) -> None:
        """In order, in as few batches as possible. Raises StorageFailed; nobody knows then what was written."""
        if not self._is_made:
            await self.make()
        try:
            for batch in _batches([self._outgoing(owner, write) for write in writes]):
                await self._stream.store(batch)
        except FAILURES as error:
            raise _failed(error) from error

    async def owners(self) -> AsyncIterator[tuple[NodeId, Write]]:
        """The states of all. Raises StorageFailed."""
        async for stored in self._scan("owner.*"):
            yield NodeId(stored.subject.rpartition(".")[2]), Write(None, stored.data)

    async def all(self) -> AsyncIterator[tuple[NodeId, Write]]:
        """The copies of all. Raises StorageFailed."""
        async for stored in self._scan("job.*.*"):
            _, owner, id = stored.subject.rsplit(".", 2)
            yield NodeId(owner), Write(JobId(id), stored.data)

    async def of(self, owner: NodeId) -> AsyncIterator[Write]:
        """One owner's. Raises StorageFailed."""
        async for stored in self._scan(f"job.{owner}.*"):
            yield Write(JobId(stored.subject.rpartition(".")[2]), stored.data)

    async def one(self, owner: NodeId, id: JobId) -> bytes | None:
        """Raises StorageFailed."""
        try:
            stored = await self._stream.last(f"{self._prefix}job.{owner}.{id}")
        except FAILURES as error:
            raise _failed(error) from error
        return None if stored is None or stored.removed else stored.data

    async def _scan(self, keys: str) -> AsyncIterator[Stored]:
        try:
            for stored in await self._stream.newest(self._prefix + keys):
                yield stored
        except FAILURES as error:
            raise _failed(error) from error

    def _outgoing(self, owner: NodeId, write: Write) -> Outgoing:
        key = f"{self._prefix}owner.{owner}" if write.id is None else f"{self._prefix}job.{owner}.{write.id}"
        return purge(key, None) if write.data is None else Outgoing(key, write.data)


def _batches(messages: Sequence[Outgoing]) -> list[list[Outgoing]]:
    batches: list[list[Outgoing]] = []
    size = 0
    for message in messages:
        if not batches or len(batches[-1]) == AT_ONCE or size + len(message.data) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(message)
        size += len(message.data)
    return batches


def _failed(error: Exception) -> StorageFailed:
    return StorageFailed(f"copies of other nodes' jobs cannot be stored or read on this node: {error}")
