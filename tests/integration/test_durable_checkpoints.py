"""Checkpoints of durable jobs on a real ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outbid_contracts.ids import JobId
from outbid_contracts.messages import Checkpoint
from outbid_node.checkpoints import Saved
from outbid_node.durable.checkpoints import CheckpointStream
from tests.ledgers import OwnLedger, own_ledger
from tests.waiting import until


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnLedger]:
    async with own_ledger(tmp_path) as ledger:
        yield ledger


async def opened(own: OwnLedger, *wanted: str) -> CheckpointStream:
    stream = CheckpointStream(await own.connect(), own.node)
    await stream.open({JobId(id) for id in wanted})
    return stream


def saved(id: str, step: int, size: int = 100_000) -> Saved:
    checkpoint = Checkpoint(step=step, steps=30, data=bytes([step]) * size, device="cpu")
    return Saved(job=JobId(id), created_ms=1, attempt=1, origin=1, checkpoint=checkpoint)


async def step_on_disk(stream: CheckpointStream, id: str) -> int:
    found = await stream.read(JobId(id))
    return found.checkpoint.step if found else 0


async def test_the_next_life_finds_the_newest_checkpoint_of_a_job_that_is_not_done(own: OwnLedger) -> None:
    first = await opened(own)
    for step in range(1, 21):
        first.write(saved("job", step))
    await until(lambda: _is_at(first, "job", 20))
    await own.kill()
    again = await opened(own, "job")
    assert again.has(JobId("job"))
    assert await again.read(JobId("job")) == saved("job", 20)


async def test_what_is_there_of_jobs_that_have_ended_goes(own: OwnLedger) -> None:
    first = await opened(own)
    for id in ("ended", "live"):
        first.write(saved(id, 2))
    await until(lambda: _is_at(first, "live", 2))
    again = await opened(own, "live")
    assert (again.has(JobId("ended")), again.has(JobId("live"))) == (False, True)
    await until(lambda: _is_at(again, "ended", 0))
    again.remove(JobId("live"))
    await until(lambda: _is_at(again, "live", 0))
    assert not again.has(JobId("live"))


async def test_garbage_in_the_ledger_is_no_checkpoint(own: OwnLedger) -> None:
    stream = await opened(own)
    stream.write(saved("job", 2))
    await until(lambda: _is_at(stream, "job", 2))
    bus = await own.connect()
    bus.post(f"$KV.CHECKPOINTS_{own.node}.job", b"garbage", headers={"Nats-Rollup": "sub"})
    await until(lambda: _is_at(stream, "job", 0))


async def _is_at(stream: CheckpointStream, id: str, step: int) -> bool:
    return await step_on_disk(stream, id) == step
