"""Slots of this machine that are open to its own callers only, while its person keeps the others out."""

from __future__ import annotations

import asyncio

from tests.unit.test_waiting import Mesh, call


async def test_who_waits_at_this_machine_passes_the_durable_jobs_that_may_not_have_its_slots() -> None:
    mesh = Mesh(free=0)
    mesh.park("durable")
    caller = asyncio.ensure_future(call(mesh, "caller"))
    await asyncio.sleep(0)
    assert mesh.gone == []
    mesh.room.own_room = lambda key: 1
    mesh.free(0)
    await caller
    assert mesh.gone == ["caller"]
    second = await call(mesh, "second")
    assert mesh.gone == ["caller", "second"]
    mesh.room.leave(second)
    assert len(mesh.room) == 1


def test_durable_jobs_go_to_other_nodes_while_this_machine_is_for_its_own_callers() -> None:
    mesh = Mesh(free=0)
    mesh.room.own_room = lambda key: 1
    mesh.park("durable")
    assert mesh.gone == []
    mesh.free(1)
    assert mesh.gone == ["durable"]
