"""Models pinned and evicted by order, in real processes: a pinned one is loaded unasked and outlives the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from outbid_capabilities import testing
from outbid_contracts.capability import Machine, ModelFile
from outbid_contracts.errors import Refused
from outbid_contracts.ids import NodeId
from outbid_node import pinning
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.estimating.speeds import Speeds
from outbid_node.runners.machine import Phase
from outbid_node.runners.pool import key_of, wanted
from tests.integration.test_runner_support import QUICK, Fleet, fleet, model

A, B, C = model("a", 400), model("b", 400), model("c", 400)


def pin(node: Fleet, file: ModelFile) -> None:
    node.pool.pin(testing.echo, file, node.settings, 0.1)
    node.pool.load_pinned()


async def until_ready(node: Fleet, name: str) -> None:
    """As a node does it: it tries each second."""

    def ready() -> bool:
        node.pool.load_pinned()
        return node.phase(name) is Phase.READY

    await node.until(ready)


async def test_a_pinned_model_stays_for_others_and_beyond_the_time_idle_ones_are_kept() -> None:
    async with fleet(budget_mib=900, memory_mib=400, keep_warm_s=0.1) as node:
        pin(node, A)
        await until_ready(node, "a")
        for file in (B, C, B):
            await (await node.submit_when_free(model=file)).success()
        await node.until(lambda: node.phase("b") is Phase.STOPPED)
        assert node.phase("a") is Phase.READY
        node.pool.unpin(key_of(testing.echo, A))
        await node.until(lambda: node.phase("a") is Phase.STOPPED)


async def test_a_pinned_model_that_has_no_room_gets_its_turn_though_nobody_asks_for_it() -> None:
    limits = replace(QUICK, turn_loads=0.5)
    async with fleet(budget_mib=500, memory_mib=400, limits=limits, slots=1) as node:
        busy = node.submit(model=B, chunks=1, delay_s=0.5, text="x")
        await node.until(lambda: node.phase("b") is Phase.BUSY)
        node.pool.want([wanted(testing.echo, B, 0.1)])
        pin(node, A)
        assert node.phase("a") is Phase.STOPPED
        await busy.success()
        await until_ready(node, "a")
        assert node.phase("b") is Phase.STOPPED


async def test_what_does_not_fit_beside_the_pinned_ones_is_refused_for_good() -> None:
    async with fleet(budget_mib=900, memory_mib=400) as node:
        pin(node, A)
        pin(node, B)
        room = node.pool.room(testing.echo, C)
        assert (room.free, room.temporary) == (0, False)
        assert room.blocked.endswith("beside FakeRunner a (pinned), FakeRunner b (pinned)")
        with pytest.raises(Refused, match=r"needs 300 MiB more memory .* \(pinned\)"):
            pin(node, C)
        assert {view.model for view in node.pool.views()} == {"a", "b"}
        node.pool.unpin(key_of(testing.echo, B))
        assert node.pool.room(testing.echo, C).temporary


async def test_a_pinned_model_that_crashes_is_loaded_again() -> None:
    async with fleet(budget_mib=900, memory_mib=400) as node:
        pin(node, A)
        await until_ready(node, "a")
        crashed = node.submit(model=A, text="x", chunks=2, crash="kill", crash_after=1)
        await crashed.failure()
        await until_ready(node, "a")


async def test_the_persons_memory_goes_before_a_pin_and_the_model_comes_back_afterwards() -> None:
    async with fleet(budget_mib=900, memory_mib=400) as node:
        pin(node, A)
        await until_ready(node, "a")
        node.pool.unload(0.0)
        await node.until(lambda: node.phase("a") is Phase.STOPPED)
        node.pool.load_pinned(may=False)
        assert node.phase("a") is Phase.STOPPED
        await until_ready(node, "a")


async def test_a_pinned_model_whose_file_is_gone_is_let_go_and_loaded_when_it_is_back(tmp_path: Path) -> None:
    async with fleet(budget_mib=900, memory_mib=400, keep_warm_s=0.1) as node:
        pinning.save(tmp_path, (("test.echo", "a"),))
        models = [A]
        kept = kept_by(node, tmp_path, lambda: models)
        kept.keep()
        await node.until(lambda: node.phase("a") is Phase.READY)
        models.clear()
        kept.keep()
        await node.until(lambda: node.phase("a") is Phase.STOPPED)
        kept.keep()
        assert node.phase("a") is Phase.STOPPED
        models.append(A)
        kept.keep()
        await node.until(lambda: node.phase("a") is Phase.READY)


def kept_by(node: Fleet, state: Path, models: Callable[[], Sequence[ModelFile]]) -> pinning.Pinning:
    """What keeps the pins of a node whose models come and go."""
    found = replace(testing.echo, models=lambda settings: tuple(models()), missing=lambda settings: None)

    class Changing(Catalogue):
        def find(self, name: str, model: str | None) -> tuple[Entry, ModelFile | None]:
            self.entries = self._look(())
            return super().find(name, model)

    catalogue = Changing({found.name: found}, {}, Speeds(), Machine())
    return pinning.Pinning(
        me=NodeId("7k2f9qzt"),
        state=state,
        pool=node.pool,
        catalogue=catalogue,
        may_load=lambda: True,
        touch=lambda: None,
    )


async def test_an_evicted_model_finishes_what_it_has_and_takes_nothing_new() -> None:
    async with fleet(budget_mib=900, memory_mib=400) as node:
        key = key_of(testing.echo, A)
        assert node.pool.evict(key) == (False, False)
        busy = node.submit(model=A, chunks=2, delay_s=0.2, text="x")
        await busy.until(lambda: busy.chunks)
        assert node.pool.evict(key) == (True, True)
        with pytest.raises(Refused):
            node.submit(model=A)
        await busy.success()
        await node.until(lambda: node.phase("a") is Phase.STOPPED)
        await node.submit(model=A).success()
        assert node.pool.evict(key) == (True, False)
        await node.until(lambda: node.phase("a") is Phase.STOPPED)
