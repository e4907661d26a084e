"""The journal takes away what has ended, in bulk, and never a job that has not."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from outbid_contracts.codec import encode
from outbid_contracts.durable import DurableJob, Terms
from outbid_contracts.ids import JobId
from outbid_node.durable.journal import Journal
from outbid_node.durable.stream import Outgoing, Stream
from outbid_node.durable.sweeper import IDLE_S, MANY
from tests.journals import Open, changed, done, ids, record
from tests.ledgers import OwnLedger
from tests.waiting import until

SWEPT_S = IDLE_S + 60


async def run_through(journal: Journal, jobs: list[DurableJob]) -> None:
    await asyncio.gather(*(journal.put(job) for job in jobs))
    await asyncio.gather(*(journal.end(done(job)) for job in jobs))


async def until_only(own: OwnLedger, jobs: list[DurableJob]) -> None:
    """Until the live keys hold the records of these jobs and nothing else."""
    stream = Stream(await own.connect(), f"KV_JOBS_{own.node}")

    async def swept() -> bool:
        asked = {"subjects_filter": f"$KV.JOBS_{own.node}.*"}
        state: dict[str, Any] = (await stream.ask(f"STREAM.INFO.{stream.name}", asked))["state"]
        found: dict[str, int] = state.get("subjects", {})
        return found == {f"$KV.JOBS_{own.node}.{job.job.id}": 1 for job in jobs}

    await until(swept, within_s=SWEPT_S)


async def test_a_flood_of_jobs_leaves_their_ends_and_the_live_ones(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    await journal.load()
    oldest, between, newest = record(), record(), record()
    await journal.put(oldest)
    first = [record() for _ in range(MANY + 100)]
    await run_through(journal, first)
    await journal.put(between)
    second = [record() for _ in range(100)]
    await run_through(journal, second)
    await asyncio.gather(journal.put(newest), journal.put(changed(oldest, 2)))
    await until_only(own, [oldest, between, newest])
    await own.kill()
    again = await opened()
    assert {job.job.id: job.number for job in await again.load()} == {
        oldest.job.id: 2,
        between.job.id: between.number,
        newest.job.id: newest.number,
    }
    for job in (first[0], first[-1], second[0], second[-1]):
        assert await again.ended(job.job.id) == done(job)


async def test_a_journal_that_has_not_read_its_jobs_sweeps_none(own: OwnLedger, opened: Open) -> None:
    waiting = [record() for _ in range(5)]
    journal = await opened()
    await asyncio.gather(*(journal.put(job) for job in waiting))
    again = await opened()
    await run_through(again, [record() for _ in range(MANY + 1)])
    await again.put(record())
    assert {job.job.id for job in waiting} <= set(ids(await (await opened()).load()))


async def test_what_the_life_before_left_is_swept(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    await journal.load()
    waits = record()
    await journal.put(waits)
    await run_through(journal, [record() for _ in range(3)])
    await own.kill()
    again = await opened()
    assert ids(await again.load()) == [waits.job.id]
    await until_only(own, [waits])


async def test_an_id_may_be_used_again_before_it_is_swept(opened: Open) -> None:
    journal = await opened()
    await journal.load()
    brief = msgspec.structs.replace(record(), terms=Terms(keep_s=1))
    await run_through(journal, [brief])

    async def forgotten() -> bool:
        return await journal.ended(brief.job.id) is None

    await until(forgotten, within_s=20)
    await journal.put(changed(brief, 7))
    await run_through(journal, [record() for _ in range(MANY + 1)])
    await journal.put(record())
    assert [job.number for job in await (await opened()).load() if job.job.id == brief.job.id] == [7]


async def test_an_end_is_recorded_though_an_earlier_try_left_the_live_record(own: OwnLedger, opened: Open) -> None:
    journal = await opened()
    jobs = [record() for _ in range(30)]
    await asyncio.gather(*(journal.put(job) for job in jobs))
    stream = Stream(await own.connect(), f"KV_JOBS_{own.node}")
    await stream.store([Outgoing(f"$KV.JOBS_{own.node}.ended.{jobs[3].job.id}", encode(done(jobs[3])))])
    await asyncio.gather(*(journal.end(done(job)) for job in jobs))
    again = await opened()
    assert await again.load() == []
    assert await again.ended(JobId(jobs[3].job.id)) == done(jobs[3])
