"""Two models of which memory holds one, on real daemons: interleaved jobs are done in turns, not by a swap for each."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.fleet import NodeProcess, fleet, mesh_of
from tests.traces import Traces, overruns

pytestmark = pytest.mark.slow

ECHO = "test.echo"
MODELS = ("a", "b")
JOBS = 40
LOAD_S = 0.2
SETTINGS = ("test.models=a,b", "test.slots=1", "test.memory_mib=400", f"test.slow_load_s={LOAD_S}")


def swaps(traces: Traces) -> int:
    """How often another model started a job than the one before it."""
    models = [event["model"] for event in traces.events("started")]
    return sum(before != after for before, after in itertools.pairwise(models))


def loads_s(node: NodeProcess) -> list[float]:
    """From the start of each runner's process until it was ready."""
    begun = {line["pid"]: line["time"] for line in node.lines("runner_started")}
    ready = [(line["time"], begun[line["pid"]]) for line in node.lines("runner_ready")]
    return [(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for end, start in ready]


def longest_wait_s(traces: Traces) -> float:
    """From a model's job to its next one, or from the first job of all to its first one."""
    started = traces.events("started")
    last = dict.fromkeys(MODELS, started[0]["mono"])
    longest = 0
    for event in started:
        longest = max(longest, event["mono"] - last[event["model"]])
        last[event["model"]] = event["mono"]
    return longest / 1e9


def assert_kept_in_bounds(node: NodeProcess, traces: Traces) -> None:
    """Each model has its turn of three times both loads, before and after which there is a load."""
    events, loads = traces.events(), loads_s(node)
    assert {event["outcome"] for event in traces.events("stopped")} == {"done"}  # nothing was stopped under a job
    assert not overruns(events)
    assert not node.lines("memory_over_budget")
    assert len(node.lines("runner_evicted")) == swaps(traces)
    took_s = (events[-1]["mono"] - events[0]["mono"]) / 1e9
    assert 1 <= swaps(traces) <= 2 + took_s / (3 * 2 * min(loads))
    assert longest_wait_s(traces) <= (3 * 2 + 2) * max(loads) + 2.0


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "callers"])
async def test_interleaved_jobs_for_two_models_are_done_in_turns(
    tmp_path: Path, record_property: Callable[[str, object], None], durable: bool
) -> None:
    traces = Traces(tmp_path)
    with fleet(tmp_path) as nodes:
        (node,) = await nodes.start("n0", flags=traces.flags(*SETTINGS, "limits.memory_mib=500"))
        jobs = [{"text": str(n), "delay_s": 0.15, "model": MODELS[n % 2]} for n in range(JOBS)]
        async with mesh_of(node) as mesh:
            if durable:
                submitted = await mesh.submit_many([{"capability": ECHO, "params": params} for params in jobs])
                results = await asyncio.gather(*(job.result(100) for job in submitted))
            else:
                results = await asyncio.gather(*(mesh.run(ECHO, params, timeout_s=100) for params in jobs))
        assert [result["text"] for result in results] == [params["text"] for params in jobs]
        assert_kept_in_bounds(node, traces)
        record_property("swaps, longest wait in s", (swaps(traces), longest_wait_s(traces)))


async def test_two_programs_that_ask_again_and_again_do_not_swap_at_each_job(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Neither has a job waiting when its last one ends: its next one comes a moment later."""
    traces = Traces(tmp_path)
    settings = (*SETTINGS, "test.slow_load_s=1.0", "limits.memory_mib=500")
    with fleet(tmp_path) as nodes:
        (node,) = await nodes.start("n0", flags=traces.flags(*settings))

        async def program(model: str) -> None:
            async with mesh_of(node) as mesh:
                for _ in range(JOBS // 4):
                    await mesh.run(ECHO, {"text": "x", "delay_s": 0.1, "model": model}, timeout_s=100)
                    await asyncio.sleep(0.04)  # what it does with the answer

        await asyncio.gather(*map(program, MODELS))
        assert_kept_in_bounds(node, traces)
        record_property("swaps", swaps(traces))
        assert swaps(traces) <= JOBS // 5


async def test_owners_elsewhere_wait_for_their_turns_and_are_told(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The jobs of two owners, one model each; only one of three nodes has the models, and it owns none of them."""
    traces = Traces(tmp_path)
    with fleet(tmp_path) as nodes:
        worker = nodes.add("worker", *traces.flags(*SETTINGS, "limits.memory_mib=500"))
        owners = [nodes.add(name) for name in ("one", "two")]
        await asyncio.gather(*(node.until_up() for node in (worker, *owners)))
        await nodes.until_whole()
        async with mesh_of(owners[0]) as one, mesh_of(owners[1]) as two:
            calls = [
                mesh.run(ECHO, {"text": f"{n}", "delay_s": 0.15, "model": model}, timeout_s=100)
                for n in range(JOBS // 2)
                for mesh, model in ((one, "a"), (two, "b"))
            ]
            results = await asyncio.gather(*calls)
        assert {result["name"] for result in results} == {"worker"}
        assert_kept_in_bounds(worker, traces)
        record_property("swaps, longest wait in s", (swaps(traces), longest_wait_s(traces)))
