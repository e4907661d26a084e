"""What the journal has removed stays removed, even when the ledger is killed after every trace of the removal expired.

nats-server forgets removals by a limit of versions when it is killed: the removed record is back as soon as the marker
that hid it has expired. So the journal removes by rollups and purges only.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import pytest

from outbid_contracts.durable import DurableJob, Terms
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Job
from outbid_node.durable.entry import MARKER_S
from outbid_node.durable.journal import Journal
from outbid_node.durable.stream import Stream
from outbid_node.durable.sweeper import IDLE_S
from tests.ledgers import OwnLedger
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

COUNT = 10
VERSIONS = 3


async def opened(own: OwnLedger) -> Journal:
    journal = Journal(await own.connect(), own.node, trouble=lambda: own.ledger.jetstream_error)
    await journal.open()
    return journal


def record(name: str, version: int) -> DurableJob:
    job = Job(
        id=JobId(name), owner=NodeId("owner"), capability="test.noop", params={"text": "x" * 200}, work={}, durable=True
    )
    return DurableJob(job=job, terms=Terms(), number=version)


async def until_expired(own: OwnLedger, names: list[str]) -> None:
    """Until nothing in the bucket shows any more that these were ever there."""
    stream = Stream(await own.connect(), f"KV_JOBS_{own.node}")
    keys = [f"$KV.JOBS_{own.node}.{name}" for name in names]

    async def gone() -> bool:
        return not await stream.lasts(keys)

    await until(gone, within_s=MARKER_S + IDLE_S + 30)


@pytest.mark.parametrize("kills", [1, 2])
async def test_no_removed_job_comes_back_when_the_ledger_is_killed(own: OwnLedger, kills: int) -> None:
    ended, dropped, kept = ([f"{what}{n}" for n in range(COUNT)] for what in ("ended", "dropped", "kept"))
    journal = await opened(own)
    assert await journal.load() == []
    for version in range(1, VERSIONS + 1):
        await asyncio.gather(*(journal.put(record(name, version)) for name in (*ended, *dropped, *kept)))
    await asyncio.gather(
        *(journal.end(msgspec.structs.replace(record(name, VERSIONS), state="done")) for name in ended),
        *(journal.drop(JobId(name)) for name in dropped),
    )
    await until_expired(own, [*ended, *dropped])
    for _ in range(kills):
        await own.kill()
    found = {job.job.id: job.number for job in await (await opened(own)).load()}
    assert found == {JobId(name): VERSIONS for name in kept}
    assert await journal.ended(JobId(ended[0])) is not None
    await journal.close()


async def test_of_a_record_and_the_one_it_replaced_only_the_newer_counts(own: OwnLedger) -> None:
    """A ledger killed between storing the one and removing the other has both when it is back."""
    bus = await own.connect()
    journal, stream = await opened(own), Stream(bus, f"KV_JOBS_{own.node}")
    changed, removed = (f"$KV.JOBS_{own.node}.{name}" for name in ("changed", "removed"))
    await asyncio.gather(journal.put(record("changed", 1)), journal.put(record("removed", 1)))
    await stream.add(changed, msgspec.msgpack.encode(record("changed", 2)))
    bus.post(removed, b"", headers={"KV-Operation": "PURGE"})
    await bus.flush()
    left = [one.removed async for one in stream.scan(removed)]
    assert left == [False, True]  # the record, and after it the marker that it is gone
    again = await opened(own)
    assert [(one.job.id, one.number) for one in await again.load()] == [("changed", 2)]
    await again.put(record("changed", 3))
    assert [one.number for one in await (await opened(own)).load()] == [3]


async def test_a_record_that_came_back_is_nobodys_job_while_its_end_is_kept(own: OwnLedger) -> None:
    journal, stream = await opened(own), Stream(await own.connect(), f"KV_JOBS_{own.node}")
    subject = f"$KV.JOBS_{own.node}.over"
    await journal.put(record("over", 1))
    await journal.end(record("over", 1))
    await stream.add(subject, msgspec.msgpack.encode(record("over", 1)))
    again = await opened(own)
    assert await again.load() == []
    assert (await again.ended(JobId("over"))) == record("over", 1)

    async def removed() -> bool:
        found = (await stream.lasts([subject])).get(subject)
        return found is None or found.removed

    await until(removed, within_s=20)
