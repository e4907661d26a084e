"""`outbid sql` and `outbid report` on real nodes: answered for whoever may ask, joined over the mesh, harmless."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import duckdb
import nats
import psutil
import pytest

from outbid import Mesh, Policy
from outbid.connection import AccessRefused
from outbid_contracts.errors import BadQuery, Busy, InvalidRequest, NoHistoryKept, QueryTooLong
from outbid_contracts.roles import inbox_prefix, user_of
from outbid_node.config_sections import default_mesh
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of
from tests.history_examples import Example, examples

WITHOUT = ("--set", "history.enabled=false", *TEST_CAPABILITY)
ENDLESS = "SELECT count(*) FROM range(1_000_000_000_000)"
STUBBORN = "SELECT levenshtein(repeat('a', 1_000_000), repeat('b', 1_000_000)) FROM range(2048)"
GREEDY = "SELECT length(string_agg('xxxxxxxxxxxxxxxx', '')) FROM range(1_000_000_000)"
"""Would take 16 GB, whatever memory_limit says."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """anna and bert keep histories, with jobs of anna's in them; carl keeps none."""

    async def start(found: Fleet) -> None:
        found.mesh = default_mesh()  # the one that `outbid creds` makes credentials for, with a key of its own here
        for name in ("anna", "bert"):
            found.add(name, *TEST_CAPABILITY)
        found.add("carl", *WITHOUT)
        await asyncio.gather(*(node.until_up() for node in found.nodes))
        await found.until_whole()
        async with mesh_of(found.nodes[0]) as mesh:
            for where in ("anna", "bert", "bert"):
                await run_on(where, mesh, found)

    with fleet(tmp_path_factory.mktemp("questions")) as found:
        asyncio.run(start(found))
        yield found


async def run_on(where: str, mesh: Mesh, found: Fleet) -> None:
    """A job there; on a busy machine an auction may miss that node's bid, and others do it."""
    policy = Policy(prefer=(where,), avoid=tuple(node.name for node in found.nodes if node.name != where))

    async def ran() -> bool:
        done = await mesh.run("test.echo", {"text": "hello", "chunks": 3, "delay_s": 0.03}, policy=policy)
        return bool(done["name"] == where)

    await eventually(ran, 30, f"no job ran on {where}")


@pytest.fixture
def anna(nodes: Fleet) -> NodeProcess:
    return nodes.nodes[0]


@pytest.fixture
async def mesh(anna: NodeProcess) -> AsyncIterator[Mesh]:
    async with mesh_of(anna) as found:
        yield found


def outbid(node: NodeProcess, *words: str, stdin: str | None = None, code: int = 0) -> str:
    """What the command printed; what it said beside that is in the failure."""
    environment = os.environ | {
        "OUTBID_STATE": str(node.state),
        "OUTBID_KEYRING": str(node.state.with_name("keyring")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "outbid", *words],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def creds(node: NodeProcess, name: str, role: str, folder: Path) -> Path:
    file = folder / f"{name}.creds"
    environment = os.environ | {"OUTBID_KEYRING": str(node.state.with_name("keyring"))}
    command = [sys.executable, "-m", "outbid_node", "creds", "--state", str(node.state), "--name", name]
    subprocess.run([*command, "--role", role, "--out", str(file)], env=environment, check=True, capture_output=True)
    return file


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_what_was_done_a_moment_before_is_in_the_answer(mesh: Mesh) -> None:
    job = "just-now"
    await mesh.run("test.echo", {"text": "prompt of a person", "delay_s": 0.06}, job=job)
    (found,) = (await mesh.sql(f"SELECT state, capability, took_s FROM jobs WHERE job = '{job}'")).dicts()
    assert (found["state"], found["capability"]) == ("done", "test.echo")
    assert found["took_s"] >= 0.05
    everything = await mesh.sql("SELECT * FROM jobs")
    assert "prompt of a person" not in str(everything.rows)


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.question[:30])
async def test_each_example_of_the_documentation_is_answered_by_a_real_node(mesh: Mesh, example: Example) -> None:
    found = await mesh.sql(example.sql, mesh=bool(example.over), over=example.over or None)
    assert found.columns
    if not example.over and "hour" not in found.names and "decline_code" not in found.names:
        assert len(found) > 0 or "error_code" in found.names


async def test_the_whole_mesh_answers_with_the_names_of_its_nodes_in_front(mesh: Mesh) -> None:
    found = await mesh.sql("SELECT job, outcome FROM runs WHERE capability = 'test.echo'", mesh=True)
    assert found.names == ("node", "job", "outcome")
    by_node = [row[0] for row in found.rows]
    assert by_node.count("bert") >= 2
    assert by_node.index("bert") >= by_node.count("anna"), "the asked node first"
    assert [(silent.name, "history.enabled" in silent.why or "enabled" in silent.why) for silent in found.silent] == [
        ("carl", True)
    ]
    summed = await mesh.sql("FROM runs", mesh=True, over="SELECT node, count(*) AS n FROM answers GROUP BY ALL")
    assert {row["node"]: row["n"] for row in summed.dicts()}["bert"] == by_node.count("bert")


async def test_what_is_wrong_with_the_query_is_said_once_and_not_by_each_node(mesh: Mesh) -> None:
    with pytest.raises(BadQuery, match="knd"):
        await mesh.sql("SELECT knd FROM jobs", mesh=True)
    with pytest.raises(BadQuery, match="nothing"):
        await mesh.sql("SELECT 1", mesh=True, over="SELECT nothing FROM answers")
    with pytest.raises(InvalidRequest, match="one SELECT"):
        await mesh.sql("DROP TABLE jobs", mesh=True)
    with pytest.raises(InvalidRequest, match="mesh"):
        await mesh.sql("SELECT 1", over="FROM answers")
    with pytest.raises(InvalidRequest, match="limit"):
        await mesh.sql("SELECT 1", limit=100_001)


async def test_a_node_without_a_history_says_so(nodes: Fleet) -> None:
    async with mesh_of(nodes.nodes[2]) as mesh:
        with pytest.raises(NoHistoryKept, match="enabled"):
            await mesh.sql("SELECT 1")
        assert {row[0] for row in (await mesh.sql("SELECT 1", mesh=True)).rows} == {"anna", "bert"}


async def test_a_node_that_stands_still_is_named_and_the_others_are_answered(nodes: Fleet, mesh: Mesh) -> None:
    bert = nodes.nodes[1]
    os.kill(bert.pid, signal.SIGSTOP)
    try:
        found = await mesh.sql("SELECT 1 AS one", mesh=True, timeout_s=1)
        assert [row for row in found.rows if row[0] == "anna"] == [("anna", 1)]
        assert "bert" in {silent.name for silent in found.silent}
        report = await mesh.report()
        assert "bert" in {silent.name for silent in report.silent}
    finally:
        os.kill(bert.pid, signal.SIGCONT)
    await nodes.until_whole()


# -- harm --------------------------------------------------------------------------------------------------------------


async def test_a_query_that_wants_all_memory_fails_and_the_node_goes_on(anna: NodeProcess, mesh: Mesh) -> None:
    with pytest.raises(BadQuery, match="memory"):
        await mesh.sql(GREEDY, timeout_s=60)
    assert (await mesh.sql("SELECT count(*) > 0 FROM jobs")).rows == ((True,),)
    family = [psutil.Process(anna.pid), *psutil.Process(anna.pid).children(recursive=True)]
    assert sum(process.memory_info().rss for process in family) < 2**31


async def test_a_query_that_nothing_interrupts_is_ended_and_loses_nothing(anna: NodeProcess, mesh: Mesh) -> None:
    before = (await mesh.sql("SELECT count(*) FROM jobs")).rows[0][0]
    ended = len(anna.lines("history_ended"))
    stubborn = asyncio.create_task(mesh.sql(STUBBORN, timeout_s=0.5))
    await mesh.run("test.echo", {"text": "meanwhile", "delay_s": 0.06})
    with pytest.raises(QueryTooLong):
        await stubborn
    assert (await mesh.sql("SELECT count(*) FROM jobs")).rows[0][0] == before + 1
    assert len(anna.lines("history_ended")) == ended + 1


async def test_two_queries_run_at_a_time_and_others_wait_their_turn(mesh: Mesh) -> None:
    long = [asyncio.create_task(mesh.sql(ENDLESS, timeout_s=6)) for _ in range(2)]

    async def is_busy() -> bool:
        try:
            await mesh.sql("SELECT 1", timeout_s=0.2)
        except Busy:
            return True
        return False

    await eventually(is_busy, 5, "a third query ran beside two others")
    patient = await mesh.sql("SELECT 1", timeout_s=30)
    assert patient.rows == ((1,),)
    assert any(task.done() for task in long)
    assert all(isinstance(end, QueryTooLong) for end in await asyncio.gather(*long, return_exceptions=True))


# -- who may, and how --------------------------------------------------------------------------------------------------


async def test_a_submitter_may_ask_and_a_viewer_may_not(anna: NodeProcess, tmp_path: Path) -> None:
    async with Mesh(anna.local.url, creds=creds(anna, "reader", "submitter", tmp_path)) as mesh:
        assert (await mesh.sql("SELECT 1")).rows == ((1,),)
        assert (await mesh.report()).rows
    async with Mesh(anna.local.url, creds=creds(anna, "onlooker", "viewer", tmp_path)) as mesh:
        with pytest.raises(AccessRefused):
            await mesh.sql("SELECT 1")
        with pytest.raises(AccessRefused):
            await mesh.report()


async def test_work_is_counted_for_the_person_whose_credentials_asked_for_it(
    nodes: Fleet, anna: NodeProcess, tmp_path: Path
) -> None:
    file = creds(anna, "eve", "submitter", tmp_path)
    user = user_of(file.read_text())
    async with Mesh(anna.local.url, creds=file) as mesh:
        await run_on("bert", mesh, nodes)
        job = await mesh.submit("test.echo", {"text": "x", "chunks": 5, "delay_s": 0.03})
        await job.result()

        async def counted() -> bool:
            rows = {row.ids[0]: row for row in (await mesh.report()).rows}
            return user in rows and rows[user].jobs >= 2 and rows[user].key == ("eve",)

        await eventually(counted, 20, "the report does not show eve's jobs")
        found = await mesh.sql(f"SELECT durable FROM jobs WHERE submitter = '{user}' ORDER BY durable", mesh=True)
        assert {row[1] for row in found.rows} == {False, True}
        report = await mesh.report(by=("person", "node", "capability"))
    shown = {row.key for row in report.rows}
    assert ("eve", "bert", "test.echo") in shown
    assert ("on anna", "bert", "test.echo") in shown
    assert report.total.jobs == sum(row.jobs for row in report.rows)
    assert "carl" in {silent.name for silent in report.silent}


async def test_plain_requests_over_nats_are_answered_in_json(anna: NodeProcess) -> None:
    local = anna.local
    client = await nats.connect(
        local.url, user_credentials=local.creds, inbox_prefix=inbox_prefix(Path(local.creds).read_text()).encode()
    )
    try:
        reply = await client.request("mesh.history.query", b"SELECT 'x' AS word, 1 AS one", timeout=20)
        answer = json.loads(reply.data)
        assert answer["rows"] == [["x", 1]]
        assert answer["columns"][0] == {"name": "word", "type": "VARCHAR"}
        reply = await client.request("mesh.history.query", b'{"sql": "SELECT 1", "mesh": true}', timeout=20)
        assert json.loads(reply.data)["silent"][0]["name"] == "carl"
        reply = await client.request("mesh.history.report", b'{"by": ["node"]}', timeout=20)
        assert {row["key"][0] for row in json.loads(reply.data)["rows"]} >= {"anna", "bert"}
        reply = await client.request("mesh.history.query", b"DROP TABLE jobs", timeout=20)
        assert reply.headers is not None
        assert reply.headers["Outbid-Error"] == "invalid_request"
    finally:
        await client.close()


# -- the command line --------------------------------------------------------------------------------------------------


def test_answers_are_printed_as_table_csv_and_json_and_saved_as_parquet(anna: NodeProcess, tmp_path: Path) -> None:
    sql = "SELECT 'a,b' AS word, [1, 2] AS list, NULL AS nothing, 1.5 AS number"
    table = outbid(anna, "sql", sql)
    assert table.split() == ["word", "list", "nothing", "number", "a,b", "1,", "2", "NULL", "1.5"]
    (row,) = csv.DictReader(io.StringIO(outbid(anna, "sql", "--csv", "-", stdin=sql)))
    assert row == {"word": "a,b", "list": "[1,2]", "nothing": "", "number": "1.5"}
    assert json.loads(outbid(anna, "sql", "--json", stdin=sql)) == [
        {"word": "a,b", "list": [1, 2], "nothing": None, "number": 1.5}
    ]
    file = tmp_path / "answer.parquet"
    assert outbid(anna, "sql", "--mesh", "--parquet", str(file), sql).strip() == str(file)
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT node, word, list FROM '{file}' ORDER BY node").fetchall() == [
            ("anna", "a,b", [1, 2]),
            ("bert", "a,b", [1, 2]),
        ]


def test_errors_and_what_is_missing_are_said_on_standard_error(anna: NodeProcess) -> None:
    assert "LINE 1: SELCT" in outbid(anna, "sql", "SELCT 1", code=1)
    assert "add --mesh" in outbid(anna, "sql", "--over", "FROM answers", "SELECT 1", code=2)
    assert "write" in outbid(anna, "sql", "--time", "soon", "SELECT 1", code=2)
    assert "YYYY-MM" in outbid(anna, "report", "--month", "May", code=2)


def test_tables_and_the_report_are_printed(anna: NodeProcess) -> None:
    tables = outbid(anna, "sql", "--tables")
    assert "public key of the user who asked for it" in tables
    assert {table["name"] for table in json.loads(outbid(anna, "sql", "--tables", "--json"))} >= {"jobs", "usage"}
    assert "on anna" in outbid(anna, "report", "--by", "person", "--by", "node")
    rows = list(csv.DictReader(io.StringIO(outbid(anna, "report", "--by", "node", "--csv"))))
    assert {row["node"] for row in rows} == {"anna", "bert"}
    assert all(float(row["chunks"]) >= 3 for row in rows)
    assert json.loads(outbid(anna, "report", "--json", "--month", "2001-01"))["rows"] == []


def test_the_time_of_a_query_is_not_the_time_of_the_mesh(anna: NodeProcess) -> None:
    began = time.monotonic()
    outbid(anna, "sql", "--time", "0.2s", ENDLESS, code=1)
    assert time.monotonic() - began < 15
