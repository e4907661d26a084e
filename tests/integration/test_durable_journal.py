"""The journal of durable jobs on a real ledger: killed, frozen, full, and written by somebody else."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import nats
import pytest

from outbid_contracts.codec import encode
from outbid_contracts.durable import DurableJob, Terms
from outbid_contracts.errors import ErrorBody, PayloadTooLarge, StorageFailed
from outbid_contracts.ids import JobId, NodeId, new_job_id
from outbid_contracts.messages import Job
from outbid_node.durable.entry import Change, Entry, judge
from outbid_node.durable.journal import Journal
from outbid_node.durable.stream import Outgoing, Stored, Stream
from tests.ledgers import OwnLedger, own_ledger
from tests.waiting import until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
can_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tiny disk, which takes root on Linux"
)
Open = Callable[..., Awaitable[Journal]]


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnLedger]:
    async with own_ledger(tmp_path) as ledger:
        yield ledger


@pytest.fixture
async def opened(own: OwnLedger) -> AsyncIterator[Open]:
    journals: list[Journal] = []

    async def one() -> Journal:
        journal = Journal(await own.connect(), own.node, trouble=lambda: own.ledger.jetstream_error)
        journals.append(journal)
        await journal.open()
        return journal

    yield one
    for journal in journals:
        await journal.close()


def record(id: str | None = None, *, version: int = 0, size: int = 20, keep_s: float = 60, at: int = 0) -> DurableJob:
    """`version` tells one record of a job from the next."""
    job = Job(
        id=JobId(id or new_job_id()),
        owner=NodeId("owner"),
        capability="test.noop",
        params={"text": "x" * size},
        work={"calls": 1},
        created_ms=at,
        durable=True,
    )
    return DurableJob(job=job, terms=Terms(keep_s=keep_s), number=version)


def changed(before: DurableJob, version: int) -> DurableJob:
    return msgspec.structs.replace(before, number=version)


def done(before: DurableJob) -> DurableJob:
    return msgspec.structs.replace(before, state="done", ended_ms=1)


def ids(records: Sequence[DurableJob]) -> list[str]:
    return [record.job.id for record in records]


async def bucket(own: OwnLedger) -> Stream:
    return Stream(await own.connect(), f"KV_JOBS_{own.node}")


def key(own: OwnLedger, name: str) -> str:
    return f"$KV.JOBS_{own.node}.{name}"


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


# -- a ledger that dies ------------------------------------------------------------------------------------------


class History:
    """What was acknowledged of each job: the newest version, and whether it ended."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.versions: dict[JobId, int] = {}
        self.ended: dict[JobId, DurableJob] = {}
        self.committed: list[tuple[JobId, int, bool]] = []
        journal.on_commit.append(self._note)

    def _note(self, changes: Sequence[Change]) -> None:
        self.committed += [(one.id, one.record.number, one.ended) for one in changes if one.record]

    async def live(self, job: DurableJob, versions: int, ends: bool) -> None:
        for version in range(1, versions + 1):
            job = changed(job, version)
            await self.journal.put(job)
            self.versions[job.job.id] = version
        if ends:
            await self.journal.end(done(job))
            self.ended[job.job.id] = done(job)
            del self.versions[job.job.id]


@posix_only
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whenever_the_ledger_is_killed_what_was_acknowledged_is_there_once(
    own: OwnLedger, opened: Open, seed: int
) -> None:
    chance = random.Random(seed)
    journal = await opened()
    history = History(journal)
    over = False

    async def worker() -> None:
        while not over:
            await history.live(record(size=chance.randrange(2000)), chance.randrange(1, 4), chance.random() < 0.5)

    workers = [asyncio.create_task(worker()) for _ in range(64)]
    for _ in range(5):
        before = len(history.committed)
        await until(lambda seen=before: len(history.committed) > seen)  # type: ignore[misc]
        await asyncio.sleep(chance.uniform(0, 0.05))
        await own.kill()
    over = True
    await asyncio.gather(*workers)
    assert len(set(history.committed)) == len(history.committed)
    again = await opened()
    found = {one.job.id: one.number for one in await again.load()}
    assert found == history.versions
    for id, last in history.ended.items():
        assert await again.ended(id) == last


@posix_only
async def test_a_job_that_ended_does_not_come_back_when_the_ledger_is_killed_later(
    own: OwnLedger, opened: Open
) -> None:
    """What superseded its record has expired by then; in the server's files that record must be gone for good."""
    journal = await opened()
    jobs = [record(keep_s=1) for _ in range(20)]
    await asyncio.gather(*(journal.put(job) for job in jobs))
    await asyncio.gather(*(journal.put(changed(job, 2)) for job in jobs))
    await asyncio.gather(
        *(journal.end(done(job)) for job in jobs[:10]), *(journal.drop(job.job.id) for job in jobs[10:])
    )
    stream = await bucket(own)

    async def empty() -> bool:
        return not await stream.lasts([key(own, "*"), key(own, "ended.*")])

    await until(empty)
    await own.kill()
    assert await (await opened()).load() == []


@posix_only
async def test_a_commit_whose_answer_was_lost_counts(own: OwnLedger, opened: Open) -> None:
    """Frozen, the ledger gets the same batch several times; thawed, it takes the first and refuses the others."""
    journal = await opened()
    commits: list[Change] = []
    ending, job, given_away = record(), record(), record()
    await asyncio.gather(*(journal.put(one) for one in (ending, given_away)))
    journal.on_commit.append(commits.extend)
    stream = journal._writer._stream
    tries = stream._batches
    thaw = await own.freeze()
    waiting = [journal.put(job), journal.end(done(ending)), journal.drop(given_away.job.id)]
    await until(lambda: stream._batches == tries + 2)
    thaw()
    await asyncio.gather(*waiting)
    assert len(commits) == 3
    assert ids(await (await opened()).load()) == [job.job.id]
    assert await journal.ended(ending.job.id) == done(ending)
    await journal.put(changed(job, 2))


@posix_only
async def test_a_job_that_was_refused_is_not_kept_though_its_record_was_on_its_way(own: OwnLedger) -> None:
    why: list[str] = []
    journal = Journal(await own.connect(), own.node, trouble=lambda: why[-1] if why else None)
    await journal.open()
    old, new, newer = record(), record(), record()
    await journal.put(old)
    thaw = await own.freeze()
    change, refused, later = journal.put(changed(old, 2)), journal.put(new), journal.put(newer)
    await until(lambda: journal._writer._flying)
    why.append("no space")
    for future in (refused, later):
        with pytest.raises(StorageFailed, match="no space"):
            await future
    assert not change.done()
    why.clear()
    again = journal.put(changed(newer, 2))
    thaw()
    await asyncio.gather(change, again)
    await journal.close()
    assert not journal._writer.entries()
    reader = Journal(await own.connect(), own.node, trouble=lambda: None)
    await reader.open()
    found = await reader.load()
    assert sorted(ids(found)) == sorted([old.job.id, newer.job.id])
    assert {one.number for one in found} == {2}
    await reader.close()


@posix_only
async def test_nothing_is_lost_when_the_node_stops(opened: Open) -> None:
    journal = await opened()
    stored = [journal.put(record()) for _ in range(100)]
    await journal.close()
    assert all(future.done() and future.exception() is None for future in stored)


@posix_only
async def test_a_stop_without_a_ledger_ends_in_an_error(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    await own.ledger.stop()
    stored = journal.put(record())
    await journal.close()
    assert isinstance(stored.exception(), StorageFailed)


# -- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100M", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@can_mount
async def test_a_disk_that_fills_refuses_new_jobs_only_and_goes_on_when_there_is_room(disk: Path) -> None:
    async with own_ledger(disk) as own:
        journal = Journal(await own.connect(), own.node, trouble=lambda: own.ledger.jetstream_error)
        await journal.open()
        history = History(journal)
        running = [record() for _ in range(20)]
        await asyncio.gather(*(journal.put(one) for one in running))
        refused: set[JobId] = set()

        async def fill() -> None:
            while not refused:
                job = record(size=200_000)
                try:
                    await journal.put(job)
                    history.versions[job.job.id] = 0
                except StorageFailed:
                    refused.add(job.job.id)

        await asyncio.gather(*(fill() for _ in range(8)))
        changes = [journal.put(changed(one, 2)) for one in running[:10]] + [
            journal.end(done(one)) for one in running[10:]
        ]
        with pytest.raises(StorageFailed):
            await journal.put(record())
        resize(disk, "400M")
        await asyncio.gather(*changes)
        await until(lambda: journal.problem is None)
        await journal.put(changed(running[0], 3))
        await journal.close()
        again = Journal(await own.connect(), own.node, trouble=lambda: own.ledger.jetstream_error)
        await again.open()
        found = {one.job.id: one.number for one in await again.load()}
        assert found == history.versions | {one.job.id: 2 for one in running[1:10]} | {running[0].job.id: 3}
        assert await again.ended(running[10].job.id) == done(running[10])
        await again.close()


@can_mount
async def test_without_jetstream_it_opens_when_there_is_and_says_so(disk: Path) -> None:
    resize(disk, "1M")
    async with own_ledger(disk) as own:
        journal = Journal(await own.connect(), own.node, trouble=lambda: own.ledger.jetstream_error)
        opened: asyncio.Future[list[DurableJob]] = asyncio.get_running_loop().create_future()

        async def on_open() -> None:
            opened.set_result(await journal.load())

        journal.on_open = on_open
        assert await journal.open() == 0
        with pytest.raises(StorageFailed, match="1 MiB free"):
            await journal.put(record())
        resize(disk, "100M")
        assert await opened == []
        assert journal.term == 1
        await until(lambda: journal.problem is None)
        await journal.put(record())
        await journal.close()


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
