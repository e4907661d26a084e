"""The journal of durable jobs on a real ledger: what is written is there, and other writers are noticed."""

from __future__ import annotations

import asyncio
import logging
import random

import msgspec
import nats
import pytest

from outbid_contracts.codec import encode
from outbid_contracts.errors import ErrorBody, PayloadTooLarge, StorageFailed
from outbid_contracts.ids import JobId
from outbid_node.durable.entry import Change, Entry, judge
from outbid_node.durable.stream import Outgoing, Stored
from tests.journals import Open, bucket, changed, done, ids, key, record
from tests.ledgers import OwnLedger
from tests.waiting import until

# -- what is written is there ------------------------------------------------------------------------------------


async def test_what_is_written_is_read_back_oldest_first(opened: Open) -> None:
    first = await opened()
    records = [record(at=number) for number in range(1200)]
    shuffled = random.Random(1).sample(records, len(records))
    await asyncio.gather(*(first.put(one) for one in shuffled))
    await first.put(changed(records[0], 7))
    assert await (await opened()).load() == [changed(records[0], 7), *records[1:]]


async def test_each_opening_has_the_next_number(opened: Open) -> None:
    assert [(await opened()).term for _ in range(3)] == [1, 2, 3]


async def test_two_puts_before_a_commit_are_one_write(opened: Open) -> None:
    journal = await opened()
    commits: list[Change] = []
    journal.on_commit.append(commits.extend)
    job = record()
    await asyncio.gather(*(journal.put(changed(job, version)) for version in range(1, 4)))
    assert commits == [Change(job.job.id, changed(job, 3), False)]


async def test_a_put_while_its_job_is_being_written_is_written_after_it(opened: Open) -> None:
    journal = await opened()
    seen: list[int] = []
    journal.on_commit.append(lambda changes: seen.extend(one.record.number for one in changes if one.record))
    job = record()
    first = journal.put(changed(job, 1))
    while not journal._writer._flying:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.gather(first, journal.put(changed(job, 2)), journal.put(changed(job, 3)))
    assert seen == [1, 3]
    assert (await (await opened()).load()) == [changed(job, 3)]


async def test_many_puts_share_their_commits(opened: Open) -> None:
    journal = await opened()
    batches: list[int] = []
    journal.on_commit.append(lambda changes: batches.append(len(changes)))
    await asyncio.gather(*(journal.put(record()) for _ in range(1100)))
    assert batches == [500, 500, 100]


async def test_an_end_takes_the_place_of_the_live_record(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    job, other = record(), record()
    await asyncio.gather(journal.put(job), journal.put(other))
    assert await journal.ended(job.job.id) is None
    await journal.end(done(job))
    assert await journal.ended(job.job.id) == done(job)
    assert ids(await (await opened()).load()) == [other.job.id]


async def test_an_ended_job_is_forgotten_when_its_time_is_over(opened: Open) -> None:
    journal = await opened()
    short, long = record(keep_s=1), record(keep_s=60)
    await asyncio.gather(*(journal.put(one) for one in (short, long)))
    await asyncio.gather(*(journal.end(done(one)) for one in (short, long)))

    async def forgotten() -> bool:
        return await journal.ended(short.job.id) is None

    await until(forgotten)
    assert await journal.ended(long.job.id) == done(long)


async def test_an_end_that_is_recorded_is_never_replaced(opened: Open) -> None:
    journal = await opened()
    job = record()
    await journal.put(job)
    await journal.end(done(job))
    await journal.put(job)  # handed in again while its key still shows the purge
    with pytest.raises(StorageFailed, match=job.job.id):
        await journal.end(msgspec.structs.replace(job, state="failed", ended_ms=2))
    assert await journal.ended(job.job.id) == done(job)


async def test_a_put_after_an_end_does_not_bring_the_job_back(opened: Open) -> None:
    journal = await opened()
    job = record()
    await journal.put(job)
    await asyncio.gather(journal.end(done(job)), journal.put(changed(job, 2)))
    assert await journal.ended(job.job.id) == done(job)
    assert await (await opened()).load() == []


async def test_a_dropped_job_is_gone_and_may_come_back(opened: Open) -> None:
    journal = await opened()
    job = record()
    await journal.put(job)
    await journal.drop(job.job.id)
    assert await (await opened()).load() == []
    await journal.put(changed(job, 2))
    assert await (await opened()).load() == [changed(job, 2)]


async def test_no_name_of_a_job_is_taken(opened: Open) -> None:
    journal = await opened()
    names = ["_term", "meta", "term", "ended", "broken", "-"]
    await asyncio.gather(*(journal.put(record(name, at=number)) for number, name in enumerate(names)))
    again = await opened()
    assert ids(await again.load()) == names
    assert again.term == 2


async def test_the_bucket_is_one_for_any_client_of_nats(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    job = record()
    await journal.put(job)
    nc = await nats.connect(own.ledger.url, user_credentials=str(own.identity.node_creds))
    kv = await nc.jetstream().key_value(f"JOBS_{own.node}")
    assert (await kv.get(job.job.id)).value == encode(job)
    await nc.close()


async def test_large_records_are_read_back(opened: Open) -> None:
    journal = await opened()
    records = [record(at=number, size=5 * 2**20) for number in range(20)]
    await asyncio.gather(*(journal.put(one) for one in records))
    assert ids(await (await opened()).load()) == ids(records)


# -- when it cannot be read or written ---------------------------------------------------------------------------


async def test_a_broken_record_is_set_aside(own: OwnLedger, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    good = record()
    await (await opened()).put(good)
    stream = await bucket(own)
    await stream.store([Outgoing(key(own, "bad"), b"\xc1garbage"), Outgoing(key(own, "other"), encode(good))])
    journal = await opened()
    with caplog.at_level(logging.WARNING):
        assert await journal.load() == [good]
    assert {"bad", "other"} <= {getattr(line, "job", "") for line in caplog.records}
    kept = await stream.last(key(own, "broken.bad"))
    assert kept is not None
    assert kept.data == b"\xc1garbage"
    assert await (await opened()).load() == [good]


async def test_a_record_too_large_for_the_bus_fails_alone(opened: Open) -> None:
    journal = await opened()
    large, small = record(size=17 * 2**20), record()
    refused, stored = await asyncio.gather(journal.put(large), journal.put(small), return_exceptions=True)
    assert isinstance(refused, PayloadTooLarge)
    assert stored is None
    assert ids(await (await opened()).load()) == [small.job.id]


async def test_only_the_job_that_another_writer_changed_fails(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    jobs = [record() for _ in range(50)]
    await asyncio.gather(*(journal.put(job) for job in jobs))
    stream = await bucket(own)
    for taken in (jobs[7], jobs[20]):
        await stream.store([Outgoing(key(own, taken.job.id), encode(changed(taken, 99)))])
    first = record()
    await stream.store([Outgoing(key(own, first.job.id), encode(changed(first, 99)))])
    changes = [
        journal.put(changed(job, 2)) if number % 2 else journal.end(done(job)) for number, job in enumerate(jobs)
    ]
    told = await asyncio.gather(*changes, journal.put(first), return_exceptions=True)
    failed = {number: str(error) for number, error in enumerate(told) if error is not None}
    assert set(failed) == {7, 20, 50}
    assert all(job.job.id in failed[number] for number, job in ((7, jobs[7]), (20, jobs[20]), (50, first)))
    assert len(await (await opened()).load()) == 25 + 2  # those put, the one taken from an end, and the first


async def test_without_room_new_jobs_are_refused_and_changes_wait(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    job = record()
    await journal.put(job)
    stream = await bucket(own)
    config = (await stream.ask(f"STREAM.INFO.{stream.name}", {}))["config"]
    await stream.ask(f"STREAM.UPDATE.{stream.name}", config | {"max_bytes": 4096})
    change = journal.put(msgspec.structs.replace(job, error=ErrorBody(code="long", message="x" * 8000)))
    new = record(size=8000)
    with pytest.raises(StorageFailed, match="maximum bytes"):
        await journal.put(new)
    assert not change.done()
    await stream.ask(f"STREAM.UPDATE.{stream.name}", config)
    await change
    assert ids(await (await opened()).load()) == [job.job.id]


# -- what a conflict means ---------------------------------------------------------------------------------------


def seen(seq: int, data: bytes = b"new", removed: bool = False) -> Stored:
    return Stored(seq, "key", data, removed)


@pytest.mark.parametrize(
    ("verb", "expected", "live", "ended", "verdict"),
    [
        ("put", 0, seen(9), None, 9),  # an earlier try
        ("put", 3, seen(3, b"old"), None, "again"),  # another of the batch met it
        ("put", 3, seen(4, b"other"), None, "conflict"),
        ("put", 0, seen(4, b"other"), None, "conflict"),
        ("put", 0, seen(4, b"", True), None, "again"),  # the id was used before
        ("put", 3, seen(4, b"", True), None, "conflict"),  # somebody deleted it
        ("put", 3, None, None, "conflict"),
        ("drop", 3, None, None, 0),
        ("drop", 3, seen(4, b"", True), None, 0),
        ("drop", 3, seen(3, b"old"), None, "again"),
        ("drop", 3, seen(4, b"other"), None, "conflict"),
        ("end", 3, None, seen(5), 5),
        ("end", 3, seen(6, b"", True), seen(5), 5),
        ("end", 3, seen(3, b"old"), None, "again"),
        ("end", 3, seen(3, b"old"), seen(5), "again"),  # half of it is visible yet
        ("end", 3, seen(3, b"old"), seen(5, b"other"), "conflict"),
        ("end", 3, None, seen(5, b"other"), "conflict"),
        ("end", 3, None, None, "again"),  # it expired already
        ("end", 3, seen(4, b"other"), None, "conflict"),
    ],
)
def test_a_conflict_is_an_earlier_try_or_another_writer(
    verb: str, expected: int, live: Stored | None, ended: Stored | None, verdict: int | str
) -> None:
    entry = Entry(JobId("job"), verb, None)  # type: ignore[arg-type]
    entry.data = b"new"
    assert judge(entry, expected, live, ended) == verdict
