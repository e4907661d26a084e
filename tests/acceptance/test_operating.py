"""Orders to nodes, by the SDK and by the command line: models kept in memory or put out of it, quiet hours, waking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from outbid import Mesh
from outbid.cli.main import cli
from outbid_contracts.codec import encode
from outbid_contracts.errors import InvalidRequest, NoBid, UnknownModel
from outbid_contracts.policy import Policy
from outbid_contracts.requests import ModelView
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of

ECHO = "test.echo"
SETTINGS = ("test.models=x,y,z", "test.memory_mib=400", "test.slots=1", "limits.memory_mib=900", "limits.keep_warm_s=1")
"""Two of three models fit into memory, and an idle one leaves it after a second."""

WITHIN_S = 40
ON_B = Policy(prefer=("b",))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    flags = [*TEST_CAPABILITY, *(part for setting in SETTINGS for part in ("--set", setting))]
    with fleet(tmp_path_factory.mktemp("operating")) as nodes:
        asyncio.run(nodes.start("a", "b", flags=flags))
        yield nodes


@pytest.fixture
def pair(running: Fleet) -> tuple[NodeProcess, NodeProcess]:
    a, b = running.nodes
    return a, b


async def model(mesh: Mesh, node: str, name: str) -> ModelView:
    return next(it for it in await mesh.models() if (it.name, it.model, it.capability) == (node, name, ECHO))


async def until_model(mesh: Mesh, node: str, name: str, *, warm: bool) -> ModelView:
    async def found() -> ModelView | None:
        view = await model(mesh, node, name)
        return view if view.warm == warm else None

    view: ModelView = await eventually(found, WITHIN_S, f"{name} on {node}: not {'warm' if warm else 'cold'}")
    return view


async def outbid(node: NodeProcess, *words: str) -> str:
    """What the command said; the exit code of a failure comes before it."""
    done = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--state", str(node.state)])
    return done.output if done.exit_code == 0 else f"{done.exit_code} {done.output}"


async def test_a_pinned_model_is_loaded_and_stays_for_other_models_and_over_a_restart(
    running: Fleet, pair: tuple[NodeProcess, NodeProcess]
) -> None:
    a, b = pair
    async with mesh_of(a) as mesh:
        assert "b keeps x in memory" in await outbid(a, "pin", "b", "x")
        assert (await until_model(mesh, "b", "x", warm=True)).pinned
        async with mesh_of(b) as there:
            for other in ("y", "z", "y", "z"):
                await there.run(ECHO, {"text": "t", "model": other}, policy=ON_B)
                assert (await model(mesh, "b", "x")).warm
        await until_model(mesh, "b", "z", warm=False)  # idle for a second, and x for longer
        assert (await model(mesh, "b", "x")).warm
        b.kill()
        b.spawn()
        await b.until_up()
        await running.until_whole()
        assert (await until_model(mesh, "b", "x", warm=True)).pinned
        assert "b keeps x no longer" in await outbid(a, "pin", "b", "x", "--undo")
        assert not (await until_model(mesh, "b", "x", warm=False)).pinned


async def test_what_cannot_be_pinned_or_evicted_is_refused_with_a_sentence(
    pair: tuple[NodeProcess, NodeProcess],
) -> None:
    async with mesh_of(pair[0]) as mesh:
        node = mesh.node("b")
        await node.pin("x")
        await node.pin("y")
        with pytest.raises(InvalidRequest, match=r"z cannot be pinned here: .* beside .*x \(pinned\), .*y \(pinned\)"):
            await node.pin("z")
        with pytest.raises(InvalidRequest, match=r"x is pinned here; .*--undo"):
            await node.evict("x")
        with pytest.raises(UnknownModel, match=r"no model 'w' .*x, y, z"):
            await node.pin("w")
        assert "1 outbid: no node is called c; there are a, b" in await outbid(pair[0], "pin", "c", "x")
        for name in ("x", "y"):
            assert not (await node.unpin(name)).pinned
        with pytest.raises(InvalidRequest, match="x is not pinned here"):
            await node.unpin("x")
        assert (await node.pin("z")).pinned
        await node.unpin("z")


async def test_a_job_for_a_model_that_pins_leave_no_room_for_is_told_so_at_once(
    pair: tuple[NodeProcess, NodeProcess],
) -> None:
    """Waiting would not help."""
    async with mesh_of(pair[0]) as mesh:
        for node in ("a", "b"):
            for name in ("x", "y"):
                await mesh.node(node).pin(name)

        async def known() -> bool:
            return all(["pinned" in (await model(mesh, node, "z")).blocked for node in ("a", "b")])

        await eventually(known, WITHIN_S, "the nodes still offer z")
        with pytest.raises(NoBid, match="pinned"):
            await mesh.run(ECHO, {"text": "t", "model": "z"}, timeout_s=WITHIN_S)
        for node in ("a", "b"):
            for name in ("x", "y"):
                await mesh.node(node).unpin(name)
        assert (await mesh.run(ECHO, {"text": "t", "model": "z"}))["text"] == "t"


async def test_an_evicted_model_finishes_its_job_and_leaves_and_is_loaded_again_for_the_next(
    pair: tuple[NodeProcess, NodeProcess],
) -> None:
    async with mesh_of(pair[0]) as mesh:
        await until_model(mesh, "b", "x", warm=False)  # from the tests before
        asked = {"text": "long", "delay_s": 1.0, "model": "x"}
        job = asyncio.create_task(mesh.run(ECHO, asked, policy=ON_B))
        await until_model(mesh, "b", "x", warm=True)
        reply = await mesh.node("b").evict("x")
        assert (reply.was_warm, reply.busy) == (True, True)
        assert (await job)["text"] == "long"
        await until_model(mesh, "b", "x", warm=False)
        assert "b does not have x in memory" in await outbid(pair[0], "evict", "b", "x")
        again = await mesh.run(ECHO, {"text": "again", "model": "x"}, policy=ON_B)
        assert again["text"] == "again"


async def test_quiet_hours_by_order_hold_at_once_and_over_a_restart_until_they_are_undone(
    running: Fleet, pair: tuple[NodeProcess, NodeProcess]
) -> None:
    a, b = pair
    async with mesh_of(a) as mesh:
        node = mesh.node("b")
        assert (await node.quiet()).hours == ()
        assert "quiet hours of b: 00:00-24:00" in await outbid(a, "quiet", "b", "00:00-24:00")
        with pytest.raises(InvalidRequest, match="22:00-07:00"):
            await node.quiet(["late"])
        ran = await mesh.run(ECHO, {"text": "t"}, policy=ON_B)
        assert ran["name"] == "a"
        b.stop()
        b.spawn()
        await b.until_up()
        await running.until_whole()
        told = await node.quiet()
        assert (told.hours, told.configured) == (("00:00-24:00",), ())
        views = {view.presence.name: view.presence for view in await mesh.nodes()}
        assert "quiet hours" in views["b"].in_use
        assert "2 " in (await outbid(a, "quiet", "b", "22:00-07:00", "--undo"))[:2]
        assert (await node.unquiet()).hours == ()

        async def on_b() -> bool:
            return bool((await mesh.run(ECHO, {"text": "t"}, policy=ON_B))["name"] == "b")

        await eventually(on_b, WITHIN_S, "b takes no work after its quiet hours were undone")


async def test_a_machine_that_went_is_listed_as_away_and_no_other_can_be_woken(
    running: Fleet, pair: tuple[NodeProcess, NodeProcess]
) -> None:
    a, b = pair
    async with mesh_of(a) as mesh:
        with pytest.raises(InvalidRequest, match="b is there already"):
            await mesh.node("b").wake()
        with pytest.raises(InvalidRequest, match=r"no machine called nas was ever seen here; those away are: none"):
            await mesh.node("nas").wake()
        id = b.local.node
        b.stop()
        away = await eventually(lambda: _away(mesh), WITHIN_S, "b is not away")
        assert [(one.node, one.name) for one in away] == [(id, "b")]
        assert "b is away since" in await outbid(a, "nodes")
        assert "b is away; there are a" in await outbid(a, "drain", "b")
        b.spawn()
        await b.until_up()
        await running.until_whole()
        assert not (await mesh.node_list()).away


async def _away(mesh: Mesh) -> object:
    return (await mesh.node_list()).away


NONSENSE = (b"\xff", *(encode({field: 7}) for field in ("model", "hours", "node", "level")))


@pytest.mark.parametrize("verb", ["pin", "evict", "quiet", "wake", "logs"])
async def test_an_order_that_makes_no_sense_gets_an_answer_and_harms_nobody(
    pair: tuple[NodeProcess, NodeProcess], verb: str
) -> None:
    a = pair[0]
    async with mesh_of(a) as mesh:
        subject = f"mesh.admin.{a.local.node}.{verb}"
        for nonsense in NONSENSE:
            try:
                await mesh.connection.request(subject, nonsense, dict, timeout_s=10)
            except InvalidRequest:
                continue
            assert verb in ("quiet", "logs"), f"{verb} took {nonsense!r}"  # an unknown field is a newer caller's
    assert not a.lines("endpoint_failed")


def test_pins_and_quiet_hours_that_cannot_be_read_do_not_keep_a_node_from_starting(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        node = nodes.node("n", *TEST_CAPABILITY)
        node.state.mkdir()
        (node.state / "pinned.json").write_text('{"pinned": [{"capability": "test.echo", "model": "gone"}]}')
        (node.state / "quiet.json").write_text('{"hours": ["always"]}')
        (node.state / "machines.json").write_text("\x00")
        node.spawn()
        asyncio.run(node.until_up())
        assert node.lines("quiet_hours_unreadable")
        assert asyncio.run(eventually(lambda: node.lines("pin_not_kept"), WITHIN_S, node.text()))
