"""A killed daemon is known as gone without waiting for its heartbeats, in either of two ways."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from tests.fleet import Fleet, NodeProcess, eventually, fleet

NOISE_S = 20.0
"""Which way it was is seen from what the nodes say, not from the time it took."""

ASKED = "does not answer"
"""Said of one that nobody listens for; of one whose heartbeats stopped it is `fell silent`."""


async def broken(nodes: Fleet, how: str) -> list[NodeProcess]:
    for name in ("a", "b", "c"):
        node = nodes.node(name)
        node.module, node.environment["BROKEN"] = "tests.acceptance.broken_nodes", how
        node.spawn()
    for node in nodes.nodes:
        await node.until_up()
    await nodes.until_whole()
    return nodes.nodes


async def said(node: NodeProcess, victim: str) -> str:
    """Why that node dropped it."""

    def gone() -> list[str]:
        return [line["message"] for line in node.lines("node_gone") if line["message"].startswith(f"node {victim} ")]

    return str((await eventually(gone, NOISE_S, node.text))[0])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the servers outlive their daemon")
async def test_the_servers_of_a_killed_daemon_tell_all_others(tmp_path: Path) -> None:
    with fleet(tmp_path) as nodes:
        *others, victim = await broken(nodes, "no_ring")
        victim.kill()
        assert [await said(node, victim.name) for node in others] == [f"node c {ASKED}"] * 2


@pytest.mark.parametrize("servers_too", [False, True], ids=["daemon", "daemon and servers at one blow"])
async def test_its_neighbour_finds_out_where_nobody_tells(tmp_path: Path, servers_too: bool) -> None:
    with fleet(tmp_path) as nodes:
        *others, victim = await broken(nodes, "deaf")
        servers = psutil.Process(victim.pid).children(recursive=True)
        for server in servers if servers_too else ():
            server.kill()
        victim.kill()
        assert [await said(node, victim.name) for node in others] == [f"node c {ASKED}"] * 2
