"""What real nodes write down: every job with its bids, never a prompt, and nothing of it stops a node."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from outbid import Policy
from outbid_contracts.errors import AttemptsExhausted, InvalidRequest, OutbidError, RunnerCrashed
from outbid_node.history.rows import TABLES
from outbid_node.history.schema import table_of
from tests.fleet import Fleet, NodeProcess, fleet, mesh_of
from tests.waiting import until

SECRET = "xyzzy-the-prompt"


def rows(node: NodeProcess, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """From the file of a node that has stopped."""
    with duckdb.connect(node.state / "history.duckdb", read_only=True) as connection:
        return connection.execute(sql, list(parameters)).fetchall()


def keeper_of(node: NodeProcess) -> psutil.Process:
    """The process that keeps its history."""
    children = psutil.Process(node.pid).children()
    return next(child for child in children if "outbid_node.history.process" in child.cmdline())


@pytest.fixture
def nodes(tmp_path: Path) -> Any:
    with fleet(tmp_path) as found:
        yield found


async def test_a_job_is_written_down_by_its_owner_and_by_the_node_that_ran_it(nodes: Fleet) -> None:
    owner, other = await nodes.start("owner", "other")
    async with mesh_of(owner) as mesh:
        elsewhere = Policy(avoid=("owner",))
        done = await mesh.run("test.echo", {"text": SECRET, "burn_s": 0.2}, policy=elsewhere)
        again = await mesh.run("test.echo", {"text": SECRET, "burn_s": 0.2}, policy=elsewhere)
    owner.stop()
    other.stop()
    [(job, name, state, attempts, promised_s, took_s, energy_j)] = rows(
        owner, "SELECT job, name, state, attempts, promised_s, took_s, energy_j FROM jobs WHERE job = ?", again["job"]
    )
    assert (name, state, attempts) == ("other", "done", 1)
    assert promised_s > 0
    assert took_s >= 0.2
    assert energy_j > 0
    [(attempt_s, attempt_j)] = rows(owner, "SELECT took_s, energy_j FROM attempts WHERE job = ?", job)
    assert attempt_s >= 0.2
    assert attempt_j == energy_j
    bids = rows(owner, "SELECT name, won, score IS NOT NULL FROM bids WHERE job = ? AND NOT made ORDER BY name", job)
    assert bids == [("other", True, True), ("owner", False, True)]
    assert rows(owner, "SELECT asked FROM auctions WHERE job = ?", job) == [(2,)]
    [(outcome, counts, ran_s)] = rows(other, "SELECT outcome, counts, took_s FROM runs WHERE job = ?", job)
    assert (outcome, counts["chunks"]) == ("done", 1.0)
    assert 0.2 <= ran_s <= took_s
    assert rows(other, "SELECT count(*) FROM bids WHERE job = ? AND made", job) == [(1,)]
    assert rows(other, "SELECT sum(jobs), sum(failed) FROM usage WHERE capability = 'test.echo'") == [(2, 0)]
    assert rows(other, "SELECT DISTINCT capability FROM loads WHERE capability = 'test.echo'") == [("test.echo",)]
    kinds = {kind for (kind,) in rows(owner, "SELECT DISTINCT kind FROM events")}
    assert {"node_up", "node_appeared", "node_down"} <= kinds
    assert done["job"] != again["job"]


async def test_no_prompt_output_or_text_of_a_runner_is_in_the_history(nodes: Fleet) -> None:
    [node] = await nodes.start("one")
    async with mesh_of(node) as mesh:
        await mesh.run("test.echo", {"text": SECRET, "delay_s": 0.1})
        for wrong, error in (
            ({"text": SECRET, "crash": "exception"}, OutbidError),
            ({"text": SECRET, "crash": "abort"}, (RunnerCrashed, AttemptsExhausted)),
            ({"text": SECRET, "garbage": "result"}, OutbidError),
            ({"text": SECRET, "chunks": SECRET}, InvalidRequest),
        ):
            with pytest.raises(error):
                await mesh.run("test.echo", wrong)
        await mesh.submit("test.echo", {"text": SECRET, "delay_s": 0.1})
    await until(lambda: node.lines("node_up"))
    node.stop()
    everything = {table_of(kind): str(rows(node, f"FROM {table_of(kind)}")) for kind in TABLES}
    assert [table for table, text in everything.items() if SECRET in text] == []
    assert "'failed'" in everything["jobs"]
    assert "attempt_failed" in everything["runs"]


async def test_every_run_counts_in_usage_though_few_have_rows(nodes: Fleet) -> None:
    [node] = await nodes.start("one")
    async with mesh_of(node) as mesh:
        await asyncio.gather(*(mesh.run("test.noop", {}) for _ in range(500)))
    node.stop()
    assert rows(node, "SELECT sum(jobs) FROM usage") == [(500,)]
    [(written,)] = rows(node, "SELECT count(*) FROM jobs")
    assert 0 < written < 500


async def test_a_killed_history_or_a_damaged_file_does_not_disturb_a_node(nodes: Fleet) -> None:
    node = nodes.node("one", "--set", "test.enabled=true")
    node.state.mkdir(parents=True)
    (node.state / "history.duckdb").write_bytes(os.urandom(100_000))
    node.spawn()
    await node.until_up()
    async with mesh_of(node) as mesh:

        async def troubles() -> bool:
            [view] = await mesh.nodes()
            return any("kept as history.duckdb.broken" in trouble for trouble in view.presence.trouble)

        await until(troubles)
        keeper_of(node).send_signal(signal.SIGKILL)
        first = await mesh.run("test.echo", {"delay_s": 0.1})
        await until(lambda: node.lines("history_ended"))
        assert first["text"] == ""
    node.stop()
    assert rows(node, "SELECT count(*) FROM jobs") == [(1,)]


async def test_a_killed_node_loses_at_most_what_it_had_not_written_yet(nodes: Fleet) -> None:
    [node] = await nodes.start("one")
    async with mesh_of(node) as mesh:
        done = await mesh.run("test.echo", {"delay_s": 0.1})
        keeper = keeper_of(node)
        seen = await until_written(node, mesh, done["job"])
        assert seen
    node.kill()
    await asyncio.to_thread(keeper.wait, 20)
    assert rows(node, "SELECT count(*) FROM jobs WHERE job = ?", done["job"]) == [(1,)]
    node.spawn()
    await node.until_up()
    assert not node.lines("history_trouble")


async def until_written(node: NodeProcess, mesh: Any, job: str) -> bool:
    async def there() -> bool:
        found = await mesh.sql(f"SELECT count(*) FROM jobs WHERE job = '{job}'")
        return bool(found.rows[0][0])

    await until(there)
    return True


async def test_export_leaves_a_parquet_file_for_each_table_and_nothing_behind(nodes: Fleet, tmp_path: Path) -> None:
    [node] = await nodes.start("one")
    async with mesh_of(node) as mesh:
        done = await mesh.run("test.echo", {"delay_s": 0.1})
        await until_written(node, mesh, done["job"])
    out = tmp_path / "out" / "deep"
    for words in ((), ("--table", "jobs")):
        command = [
            sys.executable,
            "-m",
            "outbid.cli.main",
            "export",
            str(out),
            *words,
            "--state",
            str(node.state),
            "--json",
        ]
        told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert told["rows"] == {"jobs": 1}
    assert sorted(path.stem for path in out.iterdir()) == sorted(table_of(kind) for kind in TABLES)
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT job FROM '{out / 'jobs.parquet'}'").fetchall() == [(done["job"],)]
    assert not list((node.state / "history-out").glob("export-*"))
