"""A node and the person at its machine: a game that starts and ends, and the switch for a quiet evening."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from outbid import Mesh
from outbid_contracts.events import AttemptLost, Awarded, Chunk, Finished, JobEvent
from outbid_contracts.policy import Policy
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet, mesh_of

ON_B = Policy(prefer=("b",))
GAME = "outbid-test-game"

ONLY_GAMES = ("--set", "courtesy.when_in_use=ignore", "--set", "courtesy.on_battery=ignore")
COOL = ("--set", "courtesy.max_cpu_c=150", "--set", "courtesy.back_after_s=0.5")
"""The tests may run on a hot laptop on battery, with somebody at it."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


async def start(nodes: Fleet) -> tuple[NodeProcess, NodeProcess]:
    """`a`, and `b` where somebody may play: all see the same processes, but only b knows the game."""
    a = nodes.node("a", *TEST_CAPABILITY)
    b = nodes.node("b", *TEST_CAPABILITY, *ONLY_GAMES, *COOL, "--set", f"courtesy.games={GAME}")
    b.environment["OUTBID_COURTESY_ENABLED"] = "true"
    for node in (a, b):
        node.spawn()
    await asyncio.gather(a.until_up(), b.until_up())
    await nodes.until_whole()
    return a, b


@pytest.fixture
def game(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Holds the game while it runs; `play` puts it there."""
    playing: list[subprocess.Popen[bytes]] = []
    yield playing
    for process in playing:
        process.kill()
        process.wait()


def play(folder: Path, playing: list[subprocess.Popen[bytes]]) -> None:
    program = folder / GAME
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    playing.append(subprocess.Popen([program, "600"]))


async def in_use(mesh: Mesh, name: str) -> str:
    return next(view.presence.in_use for view in await mesh.nodes() if view.presence.name == name)


def runners(node: NodeProcess) -> list[psutil.Process]:
    children = psutil.Process(node.pid).children(recursive=True)
    return [child for child in children if "runner_kit" in " ".join(child.cmdline())]


async def test_a_game_sends_the_stream_on_and_the_node_bids_again_when_it_has_ended(
    nodes: Fleet, tmp_path: Path, game: list[subprocess.Popen[bytes]]
) -> None:
    a, b = await start(nodes)
    seen: list[JobEvent] = []
    async with mesh_of(a) as mesh, mesh_of(b) as at_b:
        asked = {"text": "abcdefghij" * 20, "chunks": 200, "delay_s": 0.05}
        async for event in mesh.stream("test.echo", asked, policy=ON_B):
            seen.append(event)
            if isinstance(event, Chunk) and event.seq == 10:
                play(tmp_path, game)
        pieces = [event.seq for event in seen if isinstance(event, Chunk)]
        assert pieces == list(range(200)), "none lost, none doubled"
        assert [event.name for event in seen if isinstance(event, Awarded)] == ["b", "a"]
        (lost,) = [event for event in seen if isinstance(event, AttemptLost)]
        assert GAME in lost.error.message
        assert isinstance(seen[-1], Finished)

        assert await in_use(mesh, "b") == f"its person plays ({GAME})"
        assert (await mesh.run("test.echo", {"text": "x"}, policy=ON_B, job="while-playing"))["name"] == "a"
        (sheet,) = (await mesh.job("while-playing")).sheets
        assert [GAME in decline.reason for decline in sheet.declines] == [True]
        await eventually(lambda: not runners(b), 20, "b did not give its memory back")
        own = await at_b.run("test.echo", {"text": "x", "delay_s": 0.1}, policy=ON_B, timeout_s=30)
        assert own["name"] == "b", "who plays may ask for something himself"

        game[0].kill()
        game[0].wait()
        await eventually(lambda: back(mesh), 30, "b did not come back")
        assert (await mesh.run("test.echo", {"text": "x"}, policy=ON_B))["name"] == "b"


async def back(mesh: Mesh) -> bool:
    return await in_use(mesh, "b") == ""


def battery(root: Path, percent: int, *, plugged: bool) -> None:
    """1 Wh when full, and all of it gone in half a minute: at 80 % it lasts 18 s to the floor of 30 %."""
    pack = {"type": "Battery", "capacity": percent, "energy_now": percent * 10_000, "energy_full": 1_000_000}
    pack |= {"power_now": 100_000_000, "status": "Charging" if plugged else "Discharging"}
    for name, files in {"BAT0": pack, "AC": {"type": "Mains", "online": int(plugged)}}.items():
        folder = root / "sys" / "class" / "power_supply" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / f"{file}.new").write_text(f"{content}\n")
            (folder / f"{file}.new").replace(folder / file)


async def awarded(mesh: Mesh, seconds: float) -> list[str]:
    """Who was to run a stream of that length, until its second piece after the last award came."""
    names: list[str] = []
    asked = {"text": "x" * int(20 * seconds), "chunks": int(20 * seconds), "delay_s": 0.05}
    async for event in mesh.stream("test.echo", asked, policy=ON_B):
        if isinstance(event, Awarded):
            names.append(event.name)
        if isinstance(event, Chunk) and event.seq == 1:
            return names
    return names


async def test_when_the_plug_is_pulled_only_what_the_charge_finishes_stays_and_nothing_at_the_floor(
    nodes: Fleet, tmp_path: Path
) -> None:
    battery(tmp_path, 80, plugged=True)
    a = nodes.node("a", *TEST_CAPABILITY)
    b = nodes.node("b", *TEST_CAPABILITY, "--set", "courtesy.when_in_use=ignore", *COOL, "--set", "power.busy_w=0")
    b.module = "tests.acceptance.battery_node"
    b.environment |= {"OUTBID_COURTESY_ENABLED": "true", "SYS_ROOT": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    for node in (a, b):
        node.spawn()
    await asyncio.gather(a.until_up(), b.until_up())
    await nodes.until_whole()
    async with mesh_of(a) as mesh:
        names: list[str] = []
        quick = {"text": "x", "chunks": 4, "delay_s": 1.0}
        short = asyncio.ensure_future(mesh.run("test.echo", quick, policy=ON_B, timeout_s=30))
        asked = {"text": "x" * 1200, "chunks": 1200, "delay_s": 0.05}
        async for event in mesh.stream("test.echo", asked, policy=ON_B):
            names += [event.name] if isinstance(event, Awarded) else []
            if isinstance(event, Chunk) and event.seq == 10:
                battery(tmp_path, 80, plugged=False)
            if isinstance(event, Chunk) and names == ["b", "a"]:
                break
        assert names == ["b", "a"]
        assert (await short)["name"] == "b"
        assert "on battery, 80 %: jobs of up to" in await in_use(mesh, "b")
        assert await awarded(mesh, 60.0) == ["a"]
        assert await awarded(mesh, 0.5) == ["b"]
        battery(tmp_path, 30, plugged=False)
        await eventually(lambda: says(mesh, "its floor is 30 %"), 20, "the floor was not seen")
        assert await awarded(mesh, 0.2) == ["a"]
        battery(tmp_path, 30, plugged=True)
        await eventually(lambda: back(mesh), 20, "b did not come back")


async def says(mesh: Mesh, words: str) -> bool:
    return words in await in_use(mesh, "b")


async def test_a_paused_node_works_for_its_person_only_until_it_is_resumed_also_over_a_restart(nodes: Fleet) -> None:
    _, b = await start(nodes)
    assert "works for nobody else until" in outbid(b, "pause", "--for", "2h")
    assert b.stop() == 0
    b.spawn()
    await b.until_up()
    await nodes.until_whole()
    nodes.nodes[0].kill()
    await nodes.until_whole()
    async with mesh_of(b) as mesh:
        assert (await in_use(mesh, "b")).startswith("paused until ")
        job = await mesh.submit("test.echo", {"text": "later"})
        assert (await mesh.run("test.echo", {"text": "now", "delay_s": 0.1}, timeout_s=30))["name"] == "b"
        assert (await mesh.job(job.id)).state == "waiting"
        assert "works for others again" in outbid(b, "resume")
        await eventually(lambda: is_done(mesh, job.id), 30, "the durable job was not done")
        assert await in_use(mesh, "b") == ""


async def is_done(mesh: Mesh, job: str) -> bool:
    return (await mesh.job(job)).state == "done"


def outbid(node: NodeProcess, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
    command = [sys.executable, "-c", "from outbid.cli.main import main; main()", *arguments, "--state", str(node.state)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
