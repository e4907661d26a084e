"""A node with the test capabilities, and a client of it that nobody here wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psutil
import pytest

from tests.acceptance.node_peers.driver import Peer, install
from tests.fleet import NodeProcess, fleet

ECHO = "mesh.test.echo"
OURS_GONE_WRONG = ("endpoint_failed", "peer_request_failed", "part_died", "bus_reconnected", "task_failed")
"""Actions of the log that say a message of a stranger got where none should."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    install()
    with fleet(tmp_path_factory.mktemp("contract")) as nodes:
        (a,) = asyncio.run(nodes.start("a"))
        yield a
        assert psutil.pid_exists(a.pid)


@pytest.fixture(scope="module")
def peer(node: NodeProcess) -> Iterator[Peer]:
    with Peer(node.local.url, node.local.creds) as running:
        yield running


@pytest.fixture
def alive(node: NodeProcess, peer: Peer) -> Iterator[None]:
    """After the test: the same process, answering, with nothing in its log that should not have happened."""
    yield
    assert node.process is not None
    assert node.process.poll() is None, node.text()
    assert peer.request(ECHO, text="alive?")["body"]["text"] == "alive?"
    for action in OURS_GONE_WRONG:
        assert not node.lines(action), node.lines(action)
