"""The events of durable jobs: kept by a real ledger, watched while it dies."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import pytest

from outbid_contracts import subjects
from outbid_contracts.errors import Cancelled
from outbid_contracts.events import Chunk, Ended, Finished, JobEvent, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_node.durable.events import Events
from outbid_node.durable.stream import Stream
from tests.ledgers import OwnLedger
from tests.waiting import until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
JOB = JobId("job")
OTHER = JobId("other")


@pytest.fixture
async def events(own: OwnLedger) -> Events:
    made = Events(await own.connect(), own.node)
    await made.open()
    return made


def chunk(seq: int, job: JobId = JOB) -> Chunk:
    return Chunk(job=job, seq=seq, attempt=1, data={"text": "word "})


def finished(job: JobId = JOB) -> Finished:
    return Finished(job=job, node=NodeId("node"), name="name", attempt=1, result={"text": "all of it"}, chunks=3)


class Watcher:
    """A watch going on, and what it emitted. `is_ended` is what the record says."""

    def __init__(self, events: Events, job: JobId = JOB) -> None:
        self.got: list[JobEvent] = []
        self.is_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(events.watch(job, self.got.append, self.is_ended))

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.got if isinstance(event, Chunk)]


async def info(own: OwnLedger) -> dict[str, Any]:
    name = f"EVENTS_{own.node}"
    return await Stream(await own.connect(), name).ask(f"STREAM.INFO.{name}", {})


async def test_a_replay_gives_what_was_posted_without_the_result(events: Events) -> None:
    for number in range(2500):
        events.post(JOB, chunk(number))
        events.post(OTHER, chunk(number, OTHER))
    events.post(JOB, finished())
    await until_kept(events, 2501)
    replayed = await events.replay(JOB)
    assert replayed[:-1] == [chunk(number) for number in range(2500)]
    assert isinstance(replayed[-1], Finished)
    assert replayed[-1].result == {}
    assert replayed[-1].chunks == 3


async def until_kept(events: Events, count: int, job: JobId = JOB) -> None:
    async def kept() -> bool:
        return len(await events.replay(job)) >= count

    await until(kept)


async def test_a_watch_tells_what_was_and_what_comes_until_the_end(events: Events) -> None:
    for number in range(100):
        events.post(JOB, chunk(number))
    watcher = Watcher(events)
    await until(lambda: len(watcher.got) >= 100)
    for number in range(100, 200):
        events.post(JOB, chunk(number))
        events.post(OTHER, chunk(number, OTHER))
    events.post(JOB, finished())
    await watcher.task
    assert watcher.got == [chunk(number) for number in range(200)]


async def test_a_watch_from_the_first_moment_misses_nothing(events: Events) -> None:
    """Whatever is posted while it looks at what was."""
    watchers = []
    for number in range(300):
        events.post(JOB, chunk(number))
        if number % 30 == 0:
            watchers.append(Watcher(events))
            await asyncio.sleep(0)
    events.post(JOB, Ended(job=JOB, error=Cancelled().body()))
    await asyncio.gather(*(watcher.task for watcher in watchers))
    assert all(watcher.seqs == list(range(300)) for watcher in watchers)


async def test_a_watch_of_a_job_that_has_ended_is_over_after_its_events(events: Events) -> None:
    events.post(JOB, Waiting(job=JOB, reason="busy"))
    events.post(JOB, finished())
    await until_kept(events, 2)
    watcher = Watcher(events)
    await watcher.task
    assert watcher.got == [Waiting(job=JOB, reason="busy")]


async def test_a_watch_ends_with_the_job_though_no_event_says_so(events: Events) -> None:
    events.post(JOB, chunk(0))
    watcher = Watcher(events)
    await until(lambda: watcher.got)
    assert not watcher.task.done()
    watcher.is_ended.set_result(None)
    await asyncio.sleep(0)
    events.post(JOB, chunk(1))
    await watcher.task
    assert watcher.seqs == [0, 1]


async def test_what_cannot_be_read_is_skipped(own: OwnLedger, events: Events) -> None:
    bus = await own.connect()
    events.post(JOB, chunk(0))
    await until_kept(events, 1)
    for garbage in (b"", b"{", b'{"event":"from the future"}', b"\xff\xfe"):
        bus.post(subjects.events(own.node, JOB), garbage)
    await bus.flush()
    events.post(JOB, finished())
    await until_kept(events, 2)
    watcher = Watcher(events)
    await watcher.task
    assert watcher.got == [chunk(0)]


async def test_what_the_watcher_raises_ends_its_watch(events: Events) -> None:
    def full(event: JobEvent) -> None:
        raise ConnectionError("nobody reads")

    events.post(JOB, chunk(0))
    with pytest.raises(ConnectionError):
        await events.watch(JOB, full, asyncio.get_running_loop().create_future())


async def test_no_consumer_is_left_behind(own: OwnLedger, events: Events) -> None:
    events.post(JOB, chunk(0))
    watchers = [Watcher(events) for _ in range(5)]
    await until(lambda: all(watcher.got for watcher in watchers))
    assert (await info(own))["state"]["consumer_count"] == 5
    for watcher in watchers[:3]:
        watcher.task.cancel()
    events.post(JOB, finished())
    await asyncio.gather(*(watcher.task for watcher in watchers), return_exceptions=True)

    async def none() -> bool:
        return int((await info(own))["state"]["consumer_count"]) == 0

    await until(none)


async def test_a_stream_made_otherwise_is_replaced(own: OwnLedger) -> None:
    bus = await own.connect()
    wrong = {"subjects": [subjects.events(own.node, JobId("*"))], "storage": "memory", "max_msgs": 1}
    await Stream(bus, f"EVENTS_{own.node}").ensure(wrong)
    events = Events(bus, own.node)
    await events.open()
    for number in range(3):
        events.post(JOB, chunk(number))
    await until_kept(events, 3)
    assert (await info(own))["config"]["persist_mode"] == "async"


async def test_opening_again_keeps_the_events(own: OwnLedger, events: Events) -> None:
    events.post(JOB, chunk(0))
    await until_kept(events, 1)
    again = Events(await own.connect(), own.node)
    await again.open()
    assert await again.replay(JOB) == [chunk(0)]


# -- a ledger that dies ------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize("seed", [1, 2])
async def test_whenever_the_ledger_is_killed_a_watch_tells_all_that_is_kept_once_and_in_order(
    own: OwnLedger, events: Events, seed: int
) -> None:
    chance = random.Random(seed)
    watcher = Watcher(events)
    posted = 0
    over = False

    async def post() -> None:
        nonlocal posted
        while not over:
            events.post(JOB, chunk(posted))
            posted += 1
            await asyncio.sleep(0.001)

    poster = asyncio.create_task(post())
    for _ in range(4):
        before = len(watcher.got)
        await until(lambda seen=before: len(watcher.got) > seen)  # type: ignore[misc]
        await asyncio.sleep(chance.uniform(0, 0.1))
        await own.kill()
    back = posted
    await until(lambda: any(seq > back for seq in watcher.seqs))
    over = True
    await poster
    events.post(JOB, finished())
    await watcher.task
    kept = [event.seq for event in await events.replay(JOB) if isinstance(event, Chunk)]
    assert watcher.seqs == sorted(set(watcher.seqs))
    assert set(kept) <= set(watcher.seqs)  # it may have told what the ledger forgot
    assert len(kept) > posted // 2


@pytest.mark.parametrize("count", [3, 40])
async def test_a_watch_goes_on_though_the_ledger_forgot_its_last_events(
    own: OwnLedger, events: Events, count: int
) -> None:
    """As after a crash: their numbers are given again, to fewer or to more than it had."""
    for number in range(10):
        events.post(JOB, chunk(number))
    watcher = Watcher(events)
    await until(lambda: len(watcher.got) == 10)
    stream = Stream(await own.connect(), f"EVENTS_{own.node}")
    await stream.ask(f"STREAM.DELETE.{stream.name}", {})
    await events.open()
    for number in range(10, 10 + count):
        events.post(JOB, chunk(number))
    await until(lambda: len(watcher.got) >= 10 + count)
    events.post(JOB, finished())
    await watcher.task
    assert watcher.seqs == list(range(10 + count))
