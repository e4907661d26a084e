"""The journal of durable jobs on a ledger that is killed, frozen or full."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from outbid_contracts.durable import DurableJob
from outbid_contracts.errors import StorageFailed
from outbid_contracts.ids import JobId
from outbid_node.durable.entry import Change
from outbid_node.durable.journal import Journal
from tests.journals import Open, changed, done, ids, record
from tests.ledgers import OwnLedger, own_ledger
from tests.waiting import until

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
can_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tiny disk, which takes root on Linux"
)


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
        await until(lambda seen=before: len(history.committed) > seen, 60)  # type: ignore[misc]
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
