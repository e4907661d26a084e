"""The memory budget holds: idle runners make room, least recently used first; busy ones never do."""

from __future__ import annotations

import psutil
import pytest

from outbid_capabilities import testing
from outbid_contracts.capability import ModelFile
from outbid_contracts.errors import Refused
from outbid_node.runners.machine import Phase
from tests.integration.test_runner_support import Fleet, fleet, model

A, B, C = model("a", 400), model("b", 400), model("c", 400)


def pids(node: Fleet) -> dict[str | None, int | None]:
    return {view.model: view.pid for view in node.pool.views()}


async def load(node: Fleet, *files: ModelFile) -> None:
    for file in files:
        await node.submit(model=file).success()


async def test_the_least_recently_used_idle_runner_makes_room() -> None:
    async with fleet(budget_mib=1000, memory_mib=400) as node:
        await load(node, A, B, A)
        old = pids(node)
        await load(node, C)
        assert (node.phase("a"), node.phase("b")) == (Phase.READY, Phase.STOPPED)
        assert pids(node)["a"] == old["a"]
        assert old["b"] is not None
        assert not psutil.pid_exists(old["b"])  # its memory was free before c's was taken
        assert node.pool.stats()["evicted"] == 1
        assert node.pool.stats()["memory_mib"] == 800


async def test_no_more_runners_are_stopped_than_needed() -> None:
    async with fleet(budget_mib=1200, memory_mib=400) as node:
        await load(node, A, B, C)
        assert {node.phase(name) for name in "abc"} == {Phase.READY}
        assert node.pool.stats()["evicted"] == 0


async def test_a_busy_runner_is_never_evicted() -> None:
    async with fleet(budget_mib=500, memory_mib=400) as node:
        busy = node.submit(model=A, chunks=20, delay_s=0.02, text="x")
        await busy.until(lambda: busy.chunks)
        room = node.pool.room(testing.echo, B)
        assert (room.free, room.temporary) == (0, True)
        assert room.blocked == "needs 300 MiB more memory than the budget leaves beside FakeRunner a"
        with pytest.raises(Refused, match="needs 300 MiB more memory"):
            node.submit(model=B)
        waiting = await node.submit_when_free(model=B)
        assert busy.outcome is not None
        await busy.success()
        await waiting.success()


async def test_a_loading_runner_is_never_evicted() -> None:
    async with fleet(budget_mib=500, memory_mib=400, slow_load_s=0.2) as node:
        loading = node.submit(model=A)
        with pytest.raises(Refused, match="more memory"):
            node.submit(model=B)
        await loading.success()


async def test_a_model_larger_than_the_budget_is_refused_for_good() -> None:
    async with fleet(budget_mib=1024) as node:
        huge = model("huge", 3100)
        room = node.pool.room(testing.echo, huge)
        assert (room.free, room.temporary) == (0, False)
        assert room.blocked == "needs 3.0 GiB, the budget is 1.0 GiB"
        with pytest.raises(Refused, match=r"needs 3\.0 GiB"):
            node.submit(model=huge)
        assert node.pool.views() == []


async def test_what_a_runner_measured_replaces_what_was_thought() -> None:
    async with fleet(budget_mib=1000, memory_mib=700) as node:
        await load(node, model("small", 100))
        assert node.pool.stats()["memory_mib"] == 700
        await load(node, model("other", 100))  # fits by what is thought of it, not by what it turns out to take
        await node.until(lambda: node.phase("small") == Phase.STOPPED)
        assert node.phase("other") == Phase.READY


async def test_jobs_of_two_models_that_do_not_fit_together_take_turns() -> None:
    async with fleet(budget_mib=500, memory_mib=400) as node:
        for file in (A, B) * 3:
            sink = await node.submit_when_free(model=file)
            await sink.success()
            assert node.pool.stats()["memory_mib"] <= 500
