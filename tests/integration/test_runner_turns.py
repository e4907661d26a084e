"""Two models of which memory holds one take turns in real processes: wanted ones keep it for a while, then give way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from outbid_capabilities import testing
from outbid_contracts.capability import ModelFile
from outbid_contracts.errors import Refused
from outbid_node.runners.machine import Phase
from outbid_node.runners.memory import Memory
from outbid_node.runners.pool import wanted
from tests.integration.test_runner_support import PATIENCE_S, QUICK, Fleet, fleet, model

A, B = model("a", 400), model("b", 400)


class Node(Fleet):
    """Jobs wait here as they do at their owners: those that are refused are what `want` is told of."""

    def __init__(self, made: Fleet) -> None:
        super().__init__(made.pool, made.settings)
        self.loads: list[str | None] = []
        self.waits: list[float] = []

    def want(self, *files: ModelFile) -> None:
        self.pool.want(wanted(testing.echo, file, 0.2) for file in files)

    async def queue(self, file: ModelFile, jobs: int, **params: object) -> None:
        """One after the other, always the next one waiting."""
        for _ in range(jobs):
            began = time.monotonic()
            sink = await self.submit_when_free(model=file, text="x", chunks=1, **params)
            self.waits.append(time.monotonic() - began)
            self.note(file)
            await sink.success()

    def note(self, file: ModelFile) -> None:
        if not self.loads or self.loads[-1] != file.name:
            self.loads.append(file.name)


@asynccontextmanager
async def node(turn_loads: float = 3.0, turn_max_s: float = 120.0, **settings: object) -> AsyncIterator[Node]:
    limits = replace(QUICK, turn_loads=turn_loads, turn_max_s=turn_max_s)
    settings = {"slots": 1, "memory_mib": 400, "slow_load_s": 0.2} | settings
    async with fleet(budget_mib=500, limits=limits, **settings) as made:  # type: ignore[arg-type]
        yield Node(made)


async def both(made: Node, jobs: int, delay_s: float) -> None:
    made.want(A, B)
    left = [asyncio.create_task(made.queue(file, jobs, delay_s=delay_s)) for file in (A, B)]
    names = (A, B)
    while left_now := [task for task in left if not task.done()]:
        await asyncio.wait(left_now, return_when=asyncio.FIRST_COMPLETED)
        made.want(*(file for task, file in zip(left, names, strict=True) if not task.done()))
    for task in left:
        task.result()


def load_s(made: Node) -> float:
    return max(supervisor.load_s for supervisor in made.pool._runners.values())


async def test_two_saturated_queues_swap_seldom_and_both_get_done() -> None:
    async with node() as made:
        await made.submit(model=A).success()
        began = time.monotonic()
        await both(made, 40, 0.05)
        took_s = time.monotonic() - began
        turn_s = 3 * 2 * load_s(made)
        assert len(made.loads) <= 3 + took_s / (0.8 * turn_s), (made.loads, took_s, turn_s)
        assert max(made.waits) <= 1.5 * (turn_s + 2 * load_s(made)) + 1.0
        assert made.pool.stats()["evicted"] <= len(made.loads)


async def test_the_turn_over_it_takes_no_more_though_its_own_jobs_wait() -> None:
    async with node(turn_max_s=0.2) as made:
        busy = made.submit(model=A, text="x", chunks=1, delay_s=1.0)
        await made.until(lambda: made.phase("a") == Phase.BUSY)
        made.want(A, B)
        await made.until(lambda: made.pool.room(testing.echo, A).blocked)
        room = made.pool.room(testing.echo, A)
        assert room.blocked == "makes room for FakeRunner b, whose jobs have waited long enough"
        assert (room.free, room.temporary, room.warm) == (0, True, True)
        assert next(view.gives_way_to for view in made.pool.views() if view.model == "a") == "FakeRunner b"
        assert made.pool.room(testing.echo, B).blocked.endswith("beside FakeRunner a; its turn comes next")
        await busy.success()  # and was never evicted
        with pytest.raises(Refused, match="makes room for FakeRunner b"):
            made.submit(model=A)
        await (await made.submit_when_free(model=B)).success()


async def test_whoever_waits_is_told_when_the_turn_comes_and_not_before() -> None:
    async with node(turn_loads=0.0, turn_max_s=0.0) as made:
        await made.submit(model=A).success()
        busy = made.submit(model=A, chunks=1, delay_s=0.5, text="x")
        made.want(B)
        made.changes.clear()
        opened = asyncio.create_task(made.until(lambda: made.pool.room(testing.echo, B).free))
        await opened
        assert busy.outcome is not None or made.phase("a") == Phase.READY


async def test_an_idle_model_for_which_no_job_waits_gives_way_at_once() -> None:
    async with node(turn_loads=1000.0) as made:
        await made.submit(model=A).success()
        made.want(B)
        await made.submit(model=B).success()


async def test_a_turn_that_nobody_takes_ends() -> None:
    async with node(turn_max_s=0.3) as made:
        await made.submit(model=A).success()
        made.want(A, B)
        await made.until(lambda: made.pool.room(testing.echo, A).blocked)
        with pytest.raises(Refused, match="makes room"):
            made.submit(model=A)
        sink = await made.submit_when_free(model=A)  # b is wanted still, but comes not
        await sink.success()


async def test_what_is_wanted_no_more_makes_nobody_wait() -> None:
    async with node(turn_loads=0.0, turn_max_s=0.0) as made:
        await made.submit(model=A).success()
        made.want(A, B)
        assert made.pool.room(testing.echo, A).blocked
        made.want(A)
        await made.submit(model=A).success()


# -- the graphics card -------------------------------------------------------------------------------------------------


def on_card(name: str, gpu_memory_mib: float, memory_mib: float = 10) -> ModelFile:
    return ModelFile(name=name, memory_mib=memory_mib, gpu_memory_mib=gpu_memory_mib)


async def load(made: Fleet, files: Iterable[ModelFile]) -> None:
    for file in files:
        await made.submit(model=file).success()


async def test_memory_of_the_card_is_a_budget_of_its_own() -> None:
    card = {"gpu_budget_mib": 1000.0}
    async with fleet(budget_mib=500, pool=card, memory_mib=10, gpu_memory_mib=600) as made:
        await load(made, [on_card("a", 600)])
        made.settings["gpu_memory_mib"] = 0
        await load(made, [on_card("ram", 0)])
        assert made.pool.stats()["gpu_memory_mib"] == 600
        made.settings["gpu_memory_mib"] = 600
        await load(made, [on_card("b", 600)])
        phases = [made.phase(name) for name in ("a", "ram", "b")]
        assert phases == [Phase.STOPPED, Phase.READY, Phase.READY]  # what holds none of it was left in peace
        assert made.pool.stats()["gpu_memory_mib"] == 600


async def test_without_a_card_what_it_would_hold_counts_as_the_machines_own() -> None:
    async with fleet(budget_mib=500, memory_mib=10, gpu_memory_mib=300) as made:
        await load(made, [on_card("a", 300), on_card("b", 300)])
        assert (made.phase("a"), made.phase("b")) == (Phase.STOPPED, Phase.READY)
        assert made.pool.stats()["memory_mib"] == 310
        room = made.pool.room(testing.echo, on_card("huge", 600))
        assert (room.blocked, room.temporary) == ("needs 610 MiB, the budget is 500 MiB", False)


async def test_a_game_on_the_card_makes_idle_models_leave_and_new_ones_wait() -> None:
    card, budget, whole = {"gpu_budget_mib": 7000.0}, Memory(500, 7000), Memory(10_000, 8000)
    async with fleet(budget_mib=500, pool=card, memory_mib=10, gpu_memory_mib=3000) as made:
        await load(made, [on_card("a", 3000)])
        made.pool.sharing._moved_at -= 60  # it was loaded long ago
        made.pool.heed(budget, whole, Memory(9000, 5000))
        assert made.phase("a") == Phase.READY
        made.changes.clear()
        made.pool.heed(budget, whole, Memory(9000, 0))
        await made.until(lambda: made.phase("a") == Phase.STOPPED)
        room = made.pool.room(testing.echo, on_card("a", 3000))
        assert room.temporary
        assert room.blocked == "needs 400 MiB more GPU memory than other programs leave of the budget"
        made.pool.sharing._moved_at -= 60
        made.changes.clear()
        made.pool.heed(budget, whole, Memory(9000, 8000))
        await asyncio.wait_for(made.changes.wait(), PATIENCE_S)
        await load(made, [on_card("a", 3000)])


async def test_a_reading_from_while_our_own_runners_come_and_go_is_not_believed() -> None:
    budget, whole = Memory(500, 7000), Memory(10_000, 8000)
    async with fleet(budget_mib=500, pool={"gpu_budget_mib": 7000.0}, memory_mib=10, gpu_memory_mib=3000) as made:
        made.pool.heed(budget, whole, Memory(9000, 8000))
        await load(made, [on_card("a", 3000)])
        made.pool.heed(budget, whole, Memory(9000, 8000))  # the card as it was before
        await load(made, [on_card("b", 3000)])
        made.pool.heed(budget, whole, Memory(9000, 500))
        assert (made.phase("a"), made.phase("b")) == (Phase.READY, Phase.READY)
