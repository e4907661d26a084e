"""`outbid chaos` on a user's own node: what it reports, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from outbid import Mesh
from tests.fleet import Fleet, NodeProcess, eventually, fleet, mesh_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


def chaos(node: NodeProcess, temporary: Path, *options: str) -> subprocess.Popen[str]:
    """Its throw-away nodes have their state folders in `temporary`."""
    temporary.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "outbid", "chaos", "--state", str(node.state), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
    )


def running_in(folder: Path) -> Sequence[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(f"{folder}/") for part in process.info["cmdline"] or ())
    ]


async def unended(mesh: Mesh) -> list[str]:
    return [job.id for job in (await mesh.jobs(limit=1000)).jobs if job.state in ("waiting", "running")]


async def names(mesh: Mesh) -> list[str]:
    return [view.presence.name for view in await mesh.nodes()]


async def test_drill_reports_what_it_did_and_leaves_nothing_behind(nodes: Fleet, tmp_path: Path) -> None:
    (home,) = await nodes.start("home", flags=())
    pid, folder = home.pid, tmp_path / "temporary"
    drill = chaos(home, folder, "--minutes", "0.3", "--jobs", "150", "--seed", "7", "--yes", "--json")
    said, told = drill.communicate()
    assert drill.returncode == 0, told + said
    report = json.loads(said)
    assert report["submitted"] == report["acknowledged"] == report["done"] >= 150
    assert (report["lost"], report["violations"], report["refused"]) == ([], [], [])
    assert report["kills"] == sum(report["hits"].values()) > 0
    assert set(report["hits"]) <= {"runner", "daemon"}
    assert running_in(folder) == []
    assert list(folder.iterdir()) == []
    async with mesh_of(home) as mesh:
        assert home.pid == pid
        assert await names(mesh) == ["home"]
        assert await unended(mesh) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_drill_leaves_nothing_behind(nodes: Fleet, tmp_path: Path, number: signal.Signals) -> None:
    (home,) = await nodes.start("home", flags=())
    folder = tmp_path / "temporary"
    drill = chaos(home, folder, "--minutes", "5", "--yes")
    assert drill.stderr is not None
    assert "throw-away nodes are up" in drill.stderr.readline()
    async with mesh_of(home) as mesh:

        async def busy() -> bool:
            return len((await mesh.jobs()).jobs) > 20

        await eventually(busy, 60, "no jobs came in")
        drill.send_signal(number)
        drill.communicate(timeout=60)
        assert drill.returncode == 128 + number
        assert running_in(folder) == []
        assert list(folder.iterdir()) == []
        assert await names(mesh) == ["home"]
        assert await unended(mesh) == []


async def test_drill_asks_first(nodes: Fleet, tmp_path: Path) -> None:
    (home,) = await nodes.start("home", flags=())
    drill = chaos(home, tmp_path / "temporary", "--minutes", "5")
    _, told = drill.communicate(timeout=60)
    assert drill.returncode == 1
    assert "throw-away nodes" in told
