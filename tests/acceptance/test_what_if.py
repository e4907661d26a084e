"""What would happen to a job, and why it did, on three nodes that declare what a Pi, a laptop and a gaming PC draw."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from outbid import Mesh
from outbid_contracts.errors import InvalidRequest, NoBid, UnknownCapability, UnknownJob, from_body
from outbid_contracts.messages import JobRecord
from outbid_contracts.policy import Policy, Weights
from outbid_contracts.what_if import Case
from tests.fleet import TEST_CAPABILITY, NodeProcess, eventually, fleet, mesh_of

ECHO = "test.echo"
LONG = {"text": "x", "chunks": 40, "delay_s": 0.5}
"""Some 20 s of work, which nobody does here."""

KINDS = {"pi": (3, 9, 0.0), "laptop": (6, 36, 0.0), "gaming-pc": (70, 420, 3.6)}
"""Watts when idle and when busy, dollars an hour."""


def flags(idle_w: float, busy_w: float, usd_per_h: float) -> Sequence[str]:
    power = {"idle_w": idle_w, "busy_w": busy_w, "usd_per_h": usd_per_h, "usd_per_kwh": 0.3}
    return [*TEST_CAPABILITY, *(word for key, value in power.items() for word in ("--set", f"power.{key}={value}"))]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, NodeProcess]]:
    with fleet(tmp_path_factory.mktemp("what-if")) as running:

        async def start() -> None:
            started = [running.add(name, *flags(*power)) for name, power in KINDS.items()]
            await asyncio.gather(*(node.until_up() for node in started))
            await running.until_whole()
            async with mesh_of(started[0]) as mesh:
                for name in KINDS:  # so that no bid is for a cold start
                    await eventually(partial(ran_on, mesh, name), 20, f"{name} takes no work")

        asyncio.run(start())
        yield {node.name: node for node in running.nodes}


def outbid(node: NodeProcess, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outbid", *words, "--state", str(node.state)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
    assert done.returncode == code, done.stderr
    return done


async def ran_on(mesh: Mesh, name: str) -> bool:
    return bool((await mesh.run(ECHO, {"text": "x"}, policy=Policy(prefer=(name,)), timeout_s=30))["name"] == name)


async def run(mesh: Mesh, params: dict[str, Any], policy: Policy, job: str) -> JobRecord:
    """A job for which all three bid in time, on a machine that may be busy with other things."""
    for n in range(50):
        done = await mesh.run(ECHO, params, policy=policy, job=f"{job}-{n}", timeout_s=30)
        record = await mesh.job(str(done["job"]))
        if len(record.sheets[-1].bids) == len(KINDS):
            return record
        await asyncio.sleep(0.2)
    raise AssertionError("a node never bids in time")


def numbers_of(record: JobRecord) -> list[float]:
    bids = [considered for sheet in record.sheets for considered in sheet.bids]
    found = [n for c in bids for n in (c.score, *c.parts.values(), c.bid.finish_s, c.bid.finish_p90_s, c.bid.energy_j)]
    return [*found, *(attempt.took_s or -1.0 for attempt in record.attempts), record.promised_s or -1.0]


def name_of(case: Case) -> str:
    assert case.winner is not None
    return case.winner.name


# -- a job that might be -----------------------------------------------------------------------------------------------


async def test_the_able_nodes_are_asked_and_nothing_runs(nodes: dict[str, NodeProcess]) -> None:
    async with mesh_of(nodes["laptop"]) as mesh:
        before = {record.id for record in (await mesh.jobs()).jobs}
        reply = await mesh.what_if(ECHO, LONG, policy="green", without=["pi"])
        assert {record.id for record in (await mesh.jobs()).jobs} == before

        async def idle() -> bool:
            return not any(view.presence.running for view in await mesh.nodes())

        await eventually(idle, 20, "somebody works on it")
    assert {c.name for c in reply.base.sheet.bids} == set(KINDS)
    assert not any(c.bid.standing for c in reply.base.sheet.bids)
    assert {c.name for c in reply.cases[0].sheet.bids} == {"laptop", "gaming-pc"}
    assert reply.work == {"chunks": 40.0, "seconds": 20.0}


async def test_policies_side_by_side_have_the_winners_that_the_declared_watts_and_prices_make(
    nodes: dict[str, NodeProcess],
) -> None:
    async with mesh_of(nodes["laptop"]) as mesh:
        wanted: list[Any] = ["green", "cheap", Policy(prefer=("gaming-pc",)), Policy(avoid=("pi", "laptop"))]
        reply = await mesh.what_if(ECHO, LONG, policy=wanted)
        assert [name_of(case) for case in reply.cases] == ["pi", "pi", "gaming-pc", "gaming-pc"]
        assert reply.base.policy == Policy(goal="balanced")
        without = await mesh.what_if(ECHO, LONG, policy=["green", "cheap"], without=["pi"])
        assert [name_of(case) for case in without.cases] == ["laptop", "laptop"]
        rates = Policy(goal="custom", weights=Weights(p50=0, per_j=1), zone=("here",))
        assert name_of((await mesh.what_if(ECHO, LONG, policy=rates)).cases[0]) == "laptop"


async def test_a_node_that_is_asked_about_by_a_wrong_name_is_told_with_those_there_are(
    nodes: dict[str, NodeProcess],
) -> None:
    async with mesh_of(nodes["laptop"]) as mesh:
        with pytest.raises(InvalidRequest, match=r"no node is called 'gamingpc'; did you mean gaming-pc\?"):
            await mesh.what_if(ECHO, LONG, without=["gamingpc"])
        with pytest.raises(InvalidRequest, match="there are gaming-pc, laptop, pi"):
            await mesh.what_if(ECHO, LONG, without=["zzz"])
        by_id = await mesh.what_if(ECHO, LONG, without=[nodes["pi"].local.node])
        assert {c.name for c in by_id.cases[0].sheet.bids} == {"laptop", "gaming-pc"}


async def test_what_nobody_could_do_is_told_with_the_error_of_the_job(nodes: dict[str, NodeProcess]) -> None:
    async with mesh_of(nodes["laptop"]) as mesh:
        (case,) = (await mesh.what_if(ECHO, LONG, policy=Policy(zone=("cloud",)))).cases
        assert case.winner is None
        assert case.error is not None
        assert isinstance(from_body(case.error), NoBid)
        with pytest.raises(UnknownCapability):
            await mesh.what_if("test.nothing", {})
        with pytest.raises(InvalidRequest, match="delay_s"):
            await mesh.what_if(ECHO, LONG | {"delay_s": -1})
        with pytest.raises(InvalidRequest, match=r"policies\[0\]: policy.goal"):
            await mesh.what_if(ECHO, LONG, policy="quickest")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="either `capability`"):
            await mesh.what_if()


async def test_a_prediction_comes_true(nodes: dict[str, NodeProcess]) -> None:
    """The same bidding and ranking: what what-if says is what happens."""
    short = {"text": "x", "chunks": 2, "delay_s": 0.1}
    async with mesh_of(nodes["laptop"]) as mesh:
        for number, policy in enumerate((Policy(goal="green"), Policy(goal="green", avoid=("pi",)))):
            (case,) = (await mesh.what_if(ECHO, short, policy=policy)).cases
            record = await run(mesh, short, policy, f"predicted-{number}")
            assert record.node == case.sheet.winner


# -- a job that was ----------------------------------------------------------------------------------------------------


async def test_the_sheet_of_a_job_is_ranked_again_with_the_job_s_own_modifiers(nodes: dict[str, NodeProcess]) -> None:
    async with mesh_of(nodes["laptop"]) as mesh:
        asked = {"text": "x", "chunks": 3, "delay_s": 0.05}
        policy = Policy(goal="fastest", prefer=("gaming-pc",))
        record = await run(mesh, asked, policy, "was")
        assert record.node == nodes["gaming-pc"].local.node
        reply = await mesh.what_if(job=record.id, policy=["green", Policy(goal="green", prefer=("pi",))])
        assert reply.base.sheet == record.sheets[-1]
        assert [case.policy.prefer for case in reply.cases] == [("gaming-pc",), ("pi",)]
        assert [name_of(case) for case in reply.cases] == ["gaming-pc", "pi"]
        gone = await mesh.what_if(job=record.id, without=["gaming-pc"], policy="green")
        assert name_of(gone.cases[0]) == "pi"
        with pytest.raises(UnknownJob):
            await mesh.what_if(job="never-was", policy="green")


# -- on the command line -----------------------------------------------------------------------------------------------


def test_the_command_says_who_would_win_and_how_that_differs(nodes: dict[str, NodeProcess]) -> None:
    words = ("what-if", ECHO, "-p", "text=x", "-p", "chunks=40", "-p", "delay_s=0.5", "--policy", "green")
    told = outbid(nodes["laptop"], *words, "--without", "pi").stdout
    assert "without pi, goal green: laptop " in told
    assert "energy 0.5 × " in told
    reply = json.loads(outbid(nodes["laptop"], *words, "--json").stdout)
    assert reply["cases"][0]["policy"]["goal"] == "green"
    table = outbid(nodes["laptop"], *words[:-1], "all").stdout
    for goal in ("fastest", "balanced", "green", "cheap", "private"):
        assert f"goal {goal}: " in table
    assert "did you mean gaming-pc?" in outbid(nodes["laptop"], *words, "--without", "gamin-pc", code=1).stderr
    assert "say what kind of job" in outbid(nodes["laptop"], "what-if", code=2).stderr


async def test_why_is_told_of_a_job_from_before_a_restart(nodes: dict[str, NodeProcess]) -> None:
    pi = nodes["pi"]
    async with mesh_of(pi) as mesh:
        before = await run(mesh, {"text": "x", "chunks": 3, "delay_s": 0.1}, Policy(goal="green"), "long-ago")
    pi.stop()
    pi.spawn()
    await pi.until_up()
    async with mesh_of(pi) as mesh, mesh_of(nodes["laptop"]) as other:

        async def recalled() -> Any:
            try:
                return await mesh.job(before.id)
            except UnknownJob:
                return None

        after = await eventually(recalled, 20, "the job is forgotten")
        assert (after.state, after.policy, after.node) == ("done", before.policy, before.node)
        assert numbers_of(after) == pytest.approx(numbers_of(before), rel=1e-5), "six digits are kept"
        (sheet,), (old,) = after.sheets, before.sheets
        assert [c.name for c in sheet.bids] == [c.name for c in old.bids]
        assert (sheet.winner, sheet.why) == (old.winner, old.why)
        assert before.id in [record.id for record in (await mesh.jobs()).jobs]

        async def seen_from_there() -> Any:
            try:
                return await other.job(before.id)
            except UnknownJob:
                return None

        assert await eventually(seen_from_there, 20, "other nodes do not ask its owner's history") == after
        again = await mesh.what_if(job=before.id, policy="green", without=["pi"])
        assert "pi" not in {c.name for c in again.cases[0].sheet.bids}
    told = (await asyncio.to_thread(outbid, pi, "why", before.id)).stdout
    assert "promised" in told
    assert "energy 0.5 × " in told
