"""What a node learnt comes back from a real history: runs, warm-ups, and how the others kept their promises."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from outbid_contracts.ids import NodeId
from outbid_node.estimating.learner import WINDOW
from outbid_node.estimating.recall import recall_promises, recall_speeds
from outbid_node.estimating.trust import Trust
from outbid_node.history.interface import NoHistory
from outbid_node.history.kept import KeptHistory
from outbid_node.history.rows import Attempts, Calibrations, Loads, Runs

NOW_MS = int(time.time() * 1000)
PEER = NodeId("peer")


@pytest_asyncio.fixture
async def history(tmp_path: Path) -> AsyncIterator[KeptHistory]:
    kept = KeptHistory(tmp_path)
    await kept.start()
    yield kept
    await kept.close()


def run(number: int, **changes: Any) -> Runs:
    row: dict[str, Any] = {
        "job": f"j{number}", "attempt": 1, "owner": "o", "submitter": "", "capability": "llm.chat", "model": "m",
        "device": "cpu", "outcome": "done", "error_code": "", "started_ms": NOW_MS + number,
        "ended_ms": NOW_MS + number + 500, "warm": True, "beside": 2,
        "work": {"prompt_tokens": 9.0, "new_tokens": 64.0},
        "counts": {"new_tokens": 30.0}, "seconds": {"new_tokens": 0.4}, "promised_s": 1.0, "promised_p90_s": 2.0,
        "took_s": 0.5, "energy_j": None, "cost_usd": None, "power_source": "", "cpu_share": 0.5,
    }  # fmt: skip
    return Runs(**(row | changes))


def attempt(number: int, ended_ms: int, **changes: Any) -> Attempts:
    row: dict[str, Any] = {
        "job": f"j{number}", "attempt": 1, "capability": "llm.chat", "model": "m", "node": PEER, "name": "peer",
        "started_ms": ended_ms - 5000, "ended_ms": ended_ms, "error_code": "", "error": "", "step": 0,
        "promised_s": 0.1, "promised_p90_s": 0.2, "took_s": 5.0, "energy_j": None, "cost_usd": None, "warm": True,
    }  # fmt: skip
    return Attempts(**(row | changes))


async def test_times_measured_under_another_share_of_the_processor_are_converted(history: KeptHistory) -> None:
    history.note(run(0))
    await history.flush()
    (recalled,) = (await recall_speeds(history, cpu_share=0.25)).values()
    ((one,),) = recalled.runs.values()
    assert one.took_s == pytest.approx(1.0)
    assert one.measured == {"new_tokens": pytest.approx((30.0, 0.8))}
    assert one.work == {"prompt_tokens": 9.0, "new_tokens": 64.0}
    assert (one.warm, one.beside, one.part) == (True, 2.0, False)


async def test_the_newest_runs_of_each_kind_come_back_the_oldest_first(history: KeptHistory) -> None:
    for number in range(WINDOW + 20):
        history.note(run(number))
    history.note(run(500, model=None, capability="test.echo", device="", counts={}, seconds={}, work={}))
    history.note(run(501, outcome="failed"))
    history.note(run(502, device="cuda", cpu_share=1.0))
    await history.flush()
    found = await recall_speeds(history, cpu_share=1.0)
    assert set(found) == {("llm.chat", "m"), ("test.echo", None)}
    chats = found["llm.chat", "m"]
    assert chats.device == "cuda", "where it ran last"
    assert len(chats.runs["cpu"]) == WINDOW
    assert [one.at_s for one in chats.runs["cpu"]] == sorted(one.at_s for one in chats.runs["cpu"])
    assert chats.runs["cpu"][-1].at_s == pytest.approx((NOW_MS + WINDOW + 19 + 500) / 1000)


async def test_warm_ups_and_calibrations_come_back(history: KeptHistory) -> None:
    known: dict[str, Any] = {"capability": "llm.chat", "model": "m", "device": "cpu", "fixed_s": 0.1, "cpu_share": 1.0}
    memory: dict[str, Any] = {"memory_mib": 1.0, "gpu_memory_mib": None}
    history.note(Loads(at_ms=NOW_MS, load_s=2.0, rates={"new_tokens": 0.01}, **known, **memory))
    history.note(Loads(at_ms=NOW_MS + 1, load_s=9.0, rates={}, error="it crashed", **known, **memory))
    history.note(Calibrations(at_ms=NOW_MS + 2, load_s=2.5, rates={"new_tokens": 0.02}, crowding=0.5, **known))
    await history.flush()
    (recalled,) = (await recall_speeds(history, cpu_share=1.0)).values()
    assert [(w.load_s, w.source) for w in recalled.warm_ups["cpu"]] == [(2.0, "warm-up"), (2.5, "calibration")]
    assert recalled.warm_ups["cpu"][1].rates == {"new_tokens": 0.02}


async def test_a_node_that_broke_its_promises_just_now_is_still_doubted_after_a_restart(history: KeptHistory) -> None:
    for number in range(6):
        history.note(attempt(number, NOW_MS - 60_000 + number))
    history.note(attempt(9, NOW_MS, promised_s=None, took_s=None))
    await history.flush()
    trust = Trust()
    await recall_promises(history, trust)
    assert 40 < trust.stretch(PEER, "llm.chat") <= 50


async def test_what_was_promised_a_week_ago_is_forgotten(history: KeptHistory) -> None:
    for number in range(6):
        history.note(attempt(number, NOW_MS - 7 * 86_400_000))
    await history.flush()
    trust = Trust()
    await recall_promises(history, trust)
    assert trust.stretch(PEER, "llm.chat") == 1.0


async def test_without_a_history_a_node_knows_nothing() -> None:
    assert await recall_speeds(NoHistory(), 1.0) == {}
    await recall_promises(NoHistory(), Trust())
