"""Jobs that count joules wait for company, with a real daemon."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from outbid import Mesh, Policy
from outbid_contracts.policy import Weights
from tests.fleet import TEST_CAPABILITY, eventually, fleet, mesh_of

GREEN = Policy(goal="green")
HASTY = Policy(goal="custom", weights=Weights(p50=1.0, per_j=0.06))
"""Thrifty all the same: waits some seconds for what green would wait half a minute for."""

FLAGS = ("--set", "test.slots=2", "--set", "power.idle_w=10", "--set", "power.busy_w=2010")


async def run(mesh: Mesh, job: str, delay_s: float, policy: Policy = GREEN) -> dict[str, Any]:
    params = {"text": "x", "delay_s": delay_s}
    done: dict[str, Any] = await mesh.run("test.echo", params, policy=policy, job=job, timeout_s=120)
    return done


async def waits_for_company(mesh: Mesh, job: str) -> bool:
    return any(record.id == job and record.state == "waiting" for record in (await mesh.jobs()).jobs)


async def test_a_green_job_waits_for_a_second_one_and_alone_not_for_ever(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        node = nodes.add("one", *TEST_CAPABILITY, *FLAGS)
        await node.until_up()
        async with mesh_of(node) as mesh:
            # Nobody waits before it was seen that another comes while one is here: there are two slots, so that of four
            # the third finds others however late it is. All is short: what is learnt of the watts of jobs that sleep is
            # that they draw none.
            await asyncio.gather(*(run(mesh, job, 0.1) for job in "abcd"))
            assert (await mesh.job("a")).sheets[-1].waited_for == ""

            await run(mesh, "alone", 0.1, HASTY)
            sheet = (await mesh.job("alone")).sheets[-1]
            assert sheet.waited_for.startswith("waits for company on one: alone ")
            assert sheet.waited_s > 1.0

            first = asyncio.create_task(run(mesh, "first", 1.0))
            await eventually(lambda: waits_for_company(mesh, "first"), 20, "it does not wait for company")
            second = asyncio.create_task(run(mesh, "second", 1.0))
            await asyncio.gather(first, second)
            one, other = await mesh.job("first"), await mesh.job("second")
            told = re.fullmatch(r"waits for company on one: alone (.*) J, as one of 2 .* J", one.sheets[-1].waited_for)
            assert told is not None, one.sheets[-1].waited_for
            assert abs(one.attempts[0].started_ms - other.attempts[0].started_ms) < 900, "they did not run together"
            added_j = one.sheets[-1].bids[0].added_j
            assert added_j is not None
            assert added_j < 0.8 * float(told[1]), "it is not ranked as one of two"
