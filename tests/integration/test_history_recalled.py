"""Jobs put together again from a real history file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.policy import Policy
from outbid_node.history.interface import NoHistory
from outbid_node.history.kept import KeptHistory
from outbid_node.history.recalled import Recall
from outbid_node.history.rows import Attempts, Auctions, Bids, Jobs, Row

ME = NodeId("aaaaaaaa")


@contextlib.asynccontextmanager
async def history(folder: Path) -> AsyncIterator[KeptHistory]:
    kept = KeptHistory(folder)
    await kept.start()
    running = asyncio.create_task(kept.run())
    try:
        yield kept
    finally:
        running.cancel()
        await kept.close()


def job(id: str, at_ms: int, *, policy: str = '{"goal":"green","deadline_s":9.0}', state: str = "done") -> Jobs:
    return Jobs(
        job=id,
        capability="test.echo",
        model=None,
        policy=policy,
        submitter="U1",
        durable=True,
        priority="batch",
        state=state,
        error_code="" if state == "done" else "attempts_exhausted",
        error="",
        created_ms=at_ms,
        ended_ms=at_ms + 5000,
        node="bbbbbbbb",
        name="desk",
        attempts=1,
        promised_s=2.0,
        promised_p90_s=3.0,
        took_s=2.5,
        waited_s=1.0,
        energy_j=30.0,
        cost_usd=0.001,
        work={"seconds": 2.0},
        timings={"total_s": 2.4},
    )


def attempt(id: str, at_ms: int, number: int, error: str = "") -> Attempts:
    return Attempts(
        job=id,
        attempt=number,
        capability="test.echo",
        model=None,
        node="bbbbbbbb",
        name="desk",
        started_ms=at_ms,
        ended_ms=at_ms + 1000,
        error_code=error,
        error="",
        step=0,
        promised_s=2.0,
        promised_p90_s=3.0,
        took_s=1.0,
        energy_j=30.0,
        cost_usd=None,
        warm=True,
    )


def auction(id: str, at_ms: int, number: int) -> Auctions:
    return Auctions(
        job=id,
        attempt=number,
        how="asked",
        opened_ms=at_ms,
        took_ms=1.5,
        asked=3,
        winner="bbbbbbbb",
        why=f"auction {number} of {at_ms}",
        waited_s=0.5,
        waited_for="a slot",
    )


def bid(id: str, at_ms: int, number: int, node: str, score: float, *, made: bool = False, **more: object) -> Bids:
    row = {"finish_s": score, "finish_p90_s": score, "energy_j": 1.0, "cost_usd": 0.0, "zone": "lan", "stretch": 1.5}
    row |= {"score": score, "parts": {"time": score}, "name": node[:1], "why": "warm"} | more
    return Bids(job=id, attempt=number, made=made, at_ms=at_ms, node=node, capability="test.echo", model=None, **row)  # type: ignore[arg-type]


async def keep(kept: KeptHistory, *rows: Row) -> None:
    for row in rows:
        kept.note(row)
    await kept.flush()


async def test_a_job_is_put_together_with_its_sheets_in_order_of_rank(tmp_path: Path) -> None:
    async with history(tmp_path) as kept:
        await keep(
            kept,
            job("j", 1_000_000),
            attempt("j", 1_001_000, 1, "node_lost"),
            attempt("j", 1_003_000, 2),
            auction("j", 1_000_500, 1),
            auction("j", 1_002_500, 2),
            bid("j", 1_000_500, 1, "dddddddd", 1.0, excluded="costs too much"),
            bid("j", 1_000_500, 1, "cccccccc", 7.0),
            bid("j", 1_000_500, 1, "eeeeeeee", 2.0, parts={"time": 1.0, "late": 1.0}),
            bid("j", 1_000_500, 1, "bbbbbbbb", 3.0, won=True),
            bid("j", 1_000_500, 1, "ffffffff", 0.0, decline_code="busy", temporary=True, why="all slots are taken"),
            bid("j", 1_002_500, 2, "bbbbbbbb", 4.0, won=True),
            bid("other", 1_000_500, 1, "99999999", 0.1),
            bid("j", 1_000_500, 1, "99999999", 0.1, made=True),
            bid("j", 1_000_400, 1, "99999999", 0.1),
        )
        record = await Recall(ME, kept).job(JobId("j"))
    assert record is not None
    assert (record.owner, record.node, record.state, record.durable) == (ME, "bbbbbbbb", "done", True)
    assert record.policy == Policy(goal="green", deadline_s=9.0)
    assert [a.error.code if a.error else None for a in record.attempts] == ["node_lost", None]
    assert [s.why for s in record.sheets] == ["auction 1 of 1000500", "auction 2 of 1002500"]
    first = record.sheets[0]
    assert [c.bid.node[0] for c in first.bids] == ["b", "c", "e", "d"], "late ones behind, the excluded last"
    assert (first.bids[0].stretch, first.bids[0].parts, first.bids[3].excluded) == (
        1.5,
        {"time": 3.0},
        "costs too much",
    )
    assert [(d.code, d.reason, d.temporary) for d in first.declines] == [("busy", "all slots are taken", True)]
    assert (first.waited_s, first.waited_for) == (0.5, "a slot")


async def test_of_an_id_that_was_used_again_the_newest_job_is_told_without_the_rows_of_the_older(
    tmp_path: Path,
) -> None:
    async with history(tmp_path) as kept:
        for at_ms in (4_000_000, 9_000_000, 1_000_000):
            await keep(kept, job("j", at_ms), attempt("j", at_ms, 1), auction("j", at_ms, 1))
        record = await Recall(ME, kept).job(JobId("j"))
    assert record is not None
    assert record.created_ms == 9_000_000
    assert [s.why for s in record.sheets] == ["auction 1 of 9000000"]
    assert [a.started_ms for a in record.attempts] == [9_000_000]


async def test_the_newest_are_listed_by_state(tmp_path: Path) -> None:
    async with history(tmp_path) as kept:
        await keep(kept, *(job(f"j{n}", n * 1000, state="failed" if n % 2 else "done") for n in range(6)))
        await keep(kept, attempt("j5", 5000, 1, "node_lost"))
        recall = Recall(ME, kept)
        assert [r.id for r in await recall.newest(3, None)] == ["j5", "j4", "j3"]
        assert [r.id for r in await recall.newest(2, "done")] == ["j4", "j2"]
        assert await recall.newest(3, "running") == []
        assert [len(r.attempts) for r in await recall.newest(2, None)] == [1, 0]
        failed = (await recall.newest(1, "failed"))[0]
    assert failed.error is not None
    assert failed.error.code == "attempts_exhausted"


@pytest.mark.parametrize("policy", ['{"goal":"newest","x":1}', "", "no JSON"])
async def test_a_policy_that_another_version_wrote_costs_only_the_policy(tmp_path: Path, policy: str) -> None:
    async with history(tmp_path) as kept:
        await keep(kept, job("j", 1000, policy=policy))
        record = await Recall(ME, kept).job(JobId("j"))
    assert record is not None
    assert record.policy == Policy()


async def test_without_a_history_nothing_is_recalled() -> None:
    assert await Recall(ME, NoHistory()).job(JobId("j")) is None
    assert await Recall(ME, NoHistory()).newest(5, None) == []
