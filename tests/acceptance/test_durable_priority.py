"""The priority of a job that waits can be changed, from any node, and for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbid_contracts.errors import InvalidRequest, UnknownJob
from tests.fleet import TEST_CAPABILITY, eventually, fleet, mesh_of

pytestmark = pytest.mark.asyncio

ONE_SLOT = (*TEST_CAPABILITY, "--set", "test.slots=1")


async def test_a_job_moved_up_runs_first_and_a_new_priority_outlives_its_owner(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        owner, other = nodes.add("owner", *ONE_SLOT), nodes.add("other")
        await owner.until_up()
        await other.until_up()
        await nodes.until_whole()
        async with mesh_of(owner) as mesh:
            blocker = await mesh.submit("test.steps", {"steps": 1000, "delay_s": 0.1})
            first, second = [await mesh.submit("test.echo", {"text": "x"}) for _ in range(2)]
            later = await mesh.submit("test.echo", {"text": "y"}, delay_s=3600)

            async def waits() -> bool:
                return [(await job.status()).state for job in (blocker, second)] == ["running", "waiting"]

            await eventually(waits, 30, "the slot was not taken")
        async with mesh_of(other) as mesh:
            assert (await mesh.attach(second.id).prioritise("interactive")).priority == "interactive"
            assert (await mesh.attach(later.id).prioritise("batch")).priority == "batch"
            with pytest.raises(InvalidRequest, match="is running"):
                await mesh.attach(blocker.id).prioritise("batch")
            with pytest.raises(UnknownJob):
                await mesh.attach("nobody").prioritise("batch")
            await mesh.cancel(blocker.id)
            for job in (first, second):
                await mesh.attach(job.id).result(30)
            began = [(await mesh.job(job.id)).attempts[0].started_ms for job in (second, first)]
            assert began == sorted(began)
            with pytest.raises(InvalidRequest, match="is done"):
                await mesh.attach(first.id).prioritise("batch")
        owner.kill()
        owner.spawn()
        await owner.until_up()
        async with mesh_of(owner) as mesh:
            assert (await mesh.attach(later.id).status()).priority == "batch"
