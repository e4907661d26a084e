"""Several nodes on one machine: they find each other, reach each other, lose each other and come back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import nats
import nats.errors
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid_contracts.errors import InvalidConfig
from outbid_contracts.ids import NodeId, new_node_id
from outbid_node.bus import ports
from outbid_node.bus.backbone import Backbone
from outbid_node.bus.router import FEW, MANY, PING_S, RARE_PING_S
from outbid_node.identity.keys import MeshKey
from outbid_node.identity.node import Identity
from tests.waiting import hears, until

CHILD = """
import asyncio, json, sys
from pathlib import Path
from outbid_node.bus.backbone import Backbone
from outbid_node.identity.keys import MeshKey
from outbid_node.identity.node import Identity

async def main():
    node, key, state, route = sys.argv[1:]
    backbone = Backbone(identity=Identity(MeshKey.from_text(key), node, Path(state)), state=Path(state), version="1",
                        port=None, route_port=int(route), peers=[], discovery=False, txt={})
    await backbone.start()
    backbone.follow()
    while backbone.health()["router"]["state"] != "up":
        await asyncio.sleep(0.01)
    health = backbone.health()
    print(json.dumps({"url": backbone.url, "pids": [health["ledger"]["pid"], health["router"]["pid"]]}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Node:
    """A backbone and a client of its ledger that answers `who.<node>` and, in a queue group, `who`."""

    def __init__(self, backbone: Backbone, id: NodeId) -> None:
        self.backbone = backbone
        self.id = id
        self.nc = Client()

    async def connect(self, url: str | None = None) -> None:
        """To its own ledger, or another's at `url`; a server that takes up a new configuration refuses for a moment."""

        async def quiet(error: Exception) -> None:
            pass

        async def answer(message: Msg) -> None:
            await self.nc.publish(message.reply, self.id.encode())

        self.nc = await nats.connect(
            url or self.backbone.url,
            user_credentials=str(self.backbone.identity.node_creds),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            error_cb=quiet,
        )
        await self.nc.subscribe(f"who.{self.id}", cb=answer)
        await self.nc.subscribe("who", queue="owners", cb=answer)
        await self.nc.flush()

    async def reaches(self, other: Node) -> bool:
        try:
            return (await self.nc.request(f"who.{other.id}", b"", timeout=0.5)).data == other.id.encode()
        except (nats.errors.Error, TimeoutError):
            return False


class Fleet:
    def __init__(self, root: Path) -> None:
        self.key = MeshKey.new()
        self.nodes: list[Node] = []
        self._root = root

    async def add(self, id: NodeId | None = None, key: MeshKey | None = None, **changed: Any) -> Node:
        id = id or new_node_id()
        state = changed.pop("state", self._root / id)
        wanted: dict[str, Any] = {
            "identity": Identity(key or self.key, id, state, name=f"name of {id}"),
            "state": state,
            "version": "1",
            "port": ports.free_port(),
            "route_port": None,
            "peers": [],
            "discovery": True,
            "txt": {},
        }
        node = Node(Backbone(**wanted | changed), id)
        self.nodes.append(node)
        await node.backbone.start()
        await node.connect()
        node.backbone.follow()
        return node

    async def whole(self) -> None:
        for one in self.nodes:
            for other in self.nodes:
                await until(partial(one.reaches, other))

    async def close(self) -> None:
        await asyncio.gather(*(node.nc.close() for node in self.nodes))
        await asyncio.gather(*(node.backbone.stop() for node in self.nodes))


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.close()


async def nobody_answers(node: Node, subject: str) -> bool:
    """Whether the bus says so itself; a mere timeout is no."""
    try:
        await node.nc.request(subject, b"", timeout=0.2)
    except nats.errors.NoRespondersError:
        return True
    except (nats.errors.Error, TimeoutError):
        return False
    return False


def pids(node: Node) -> tuple[int, int]:
    health = node.backbone.health()
    return health["ledger"]["pid"], health["router"]["pid"]


async def test_nothing_is_linked_before_the_daemon_is_signed_in(fleet: Fleet, tmp_path: Path) -> None:
    """The link reloads the ledger, which may hang up on who is just signing in."""
    other = await fleet.add()
    identity = Identity(fleet.key, new_node_id(), tmp_path / "late", name="late")
    late = Backbone(
        identity=identity,
        state=tmp_path / "late",
        version="1",
        port=None,
        route_port=None,
        peers=[],
        discovery=True,
        txt={},
    )
    await late.start()
    try:
        await until(lambda: other.id in late._known)
        await asyncio.sleep(0.3)
        assert late.router.health()["state"] != "up"
        assert "leafnodes" not in late.ledger.server.config_file.read_text()
        late.follow()
        await until(lambda: late.router.health()["state"] == "up")
        await until(lambda: "leafnodes" in late.ledger.server.config_file.read_text())
    finally:
        await late.stop()


async def test_routers_of_many_nodes_ping_each_other_less_often_and_no_link_breaks_by_it(fleet: Fleet) -> None:
    a, b = [await fleet.add() for _ in range(2)]
    await fleet.whole()
    router, lost = a.backbone.router.server, a.nc.stats["reconnects"]
    pid = router.pid

    async def sized(nodes: int, said: str) -> None:
        a.backbone.suit(nodes)
        await until(lambda: f"Reloaded: ping_interval = {said}" in router.log_file.read_text())
        assert await a.reaches(b)

    await sized(MANY, f"{RARE_PING_S}s")
    a.backbone.suit(FEW + 1)
    assert not a.backbone.router.suit(MANY - 1), "a mesh that is neither keeps what it has"
    await sized(FEW, f"{PING_S}s")
    assert router.pid == pid
    assert a.nc.stats["reconnects"] == lost


async def test_a_lone_node_runs_no_router(fleet: Fleet) -> None:
    node = await fleet.add()
    assert (await node.nc.request("who", b"", timeout=1)).data == node.id.encode()
    health = node.backbone.health()
    assert health["router"]["state"] == "stopped"
    assert node.backbone.route_port > 0


async def test_three_nodes_find_each_other_and_everything_crosses(fleet: Fleet) -> None:
    a, b, c = [await fleet.add() for _ in range(3)]
    await fleet.whole()
    for _ in range(50):  # a queue group's member on the caller's own server is preferred
        assert (await b.nc.request("who", b"", timeout=1)).data == b.id.encode()
    assert (await a.nc.jetstream(domain=c.id).account_info()).domain == c.id

    async def weigh(message: Msg) -> None:
        await c.nc.publish(message.reply, str(len(message.data)).encode())

    await c.nc.subscribe("weigh", cb=weigh)
    await until(lambda: hears(a.nc, "weigh"))
    assert (await a.nc.request("weigh", bytes(10 * 2**20), timeout=10)).data == b"10485760"
    assert a.nc.stats["reconnects"] == 0
    await until(lambda: len(a.backbone.health()["discovery"]["peers"]) == 2)


async def test_without_discovery_a_given_peer_is_enough_even_if_it_comes_later(fleet: Fleet) -> None:
    port = ports.free_port()
    await fleet.add(discovery=False, peers=[f"127.0.0.1:{port}"])
    await fleet.add(discovery=False, peers=[f"127.0.0.1:{port}"])
    await fleet.add(discovery=False, route_port=port)
    await fleet.whole()


async def test_two_meshes_on_one_machine_do_not_mix_even_when_told_to(fleet: Fleet) -> None:
    port = ports.free_port()
    await fleet.add(route_port=port)
    await fleet.add()
    stranger = await fleet.add(key=MeshKey.new(), peers=[f"127.0.0.1:{port}"])
    fleet.nodes.remove(stranger)
    try:
        await fleet.whole()
        await until(lambda: "not pinned" in str(stranger.backbone.health()["router"].get("last_error")))
        await until(lambda: fleet.key.id in stranger.backbone.health()["discovery"]["other_meshes"])
        assert stranger.backbone.health()["discovery"]["peers"] == []
        for node in fleet.nodes:
            assert not await stranger.reaches(node)
            assert not await node.reaches(stranger)
    finally:
        fleet.nodes.append(stranger)


async def test_a_killed_router_comes_back_and_the_others_hardly_notice(fleet: Fleet) -> None:
    a, b, c = [await fleet.add() for _ in range(3)]
    await fleet.whole()
    _, router = pids(a)
    psutil.Process(router).kill()
    last = worst_s = 0.0
    began = last = time.monotonic()
    while time.monotonic() - began < 0.5:
        if await b.reaches(c):
            worst_s, last = max(worst_s, time.monotonic() - last), time.monotonic()
    assert worst_s < 0.5  # 0.02 s on a quiet machine
    assert await a.reaches(a)
    await fleet.whole()
    assert a.backbone.health()["router"]["restarts"] == 1


async def test_a_killed_ledger_is_back_in_the_mesh(fleet: Fleet) -> None:
    a, b = [await fleet.add() for _ in range(2)]
    await fleet.whole()
    ledger, _ = pids(a)
    psutil.Process(ledger).kill()
    await until(lambda: a.backbone.health()["ledger"]["restarts"] == 1)
    await fleet.whole()
    assert await b.reaches(a)


async def test_what_a_node_announces_can_change(fleet: Fleet) -> None:
    a, b = await fleet.add(txt={"gpu": "none"}), await fleet.add()
    assert b.backbone.discovery is not None
    seen = b.backbone.discovery.seen
    await until(lambda: a.id in seen and seen[a.id].txt == {"gpu": "none"})
    await a.backbone.update_txt({"gpu": "RTX 9", "memory": "24"})
    await until(lambda: seen[a.id].txt == {"gpu": "RTX 9", "memory": "24"})
    assert seen[a.id].route_port == a.backbone.route_port


async def test_a_node_that_leaves_says_goodbye_and_its_servers_are_gone(fleet: Fleet) -> None:
    a, b = [await fleet.add() for _ in range(2)]
    await fleet.whole()
    assert b.backbone.discovery is not None
    servers = pids(a)
    await a.backbone.stop()
    assert not any(psutil.pid_exists(pid) for pid in servers)
    await until(lambda: a.id not in b.backbone.discovery.seen)  # type: ignore[union-attr]


async def test_a_restarted_node_keeps_its_ports_and_is_found_again(fleet: Fleet) -> None:
    a, b = [await fleet.add() for _ in range(2)]
    await fleet.whole()
    await a.nc.close()
    await a.backbone.stop()
    again = await fleet.add(a.id, port=None)
    fleet.nodes.remove(a)
    assert (again.backbone.url, again.backbone.route_port) == (a.backbone.url, a.backbone.route_port)
    await again.nc.close()
    await again.connect()
    await until(lambda: b.reaches(again))


async def test_a_taken_route_port_is_refused_at_once(fleet: Fleet) -> None:
    a = await fleet.add(route_port=ports.free_port())
    await until(lambda: a.backbone.health()["router"]["state"] == "up")
    with pytest.raises(InvalidConfig, match=r"taken by .*nats-server.* \(pid"):
        await fleet.add(route_port=a.backbone.route_port)
    fleet.nodes.pop()


async def start_child(node: NodeId, key: MeshKey, state: Path, route: int) -> tuple[subprocess.Popen[str], Any]:
    argv = [sys.executable, "-c", CHILD, node, key.text(), str(state), str(route)]
    process = await asyncio.to_thread(lambda: subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
    assert process.stdout is not None
    return process, json.loads(await asyncio.to_thread(process.stdout.readline))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed parent")
async def test_a_killed_daemon_takes_its_servers_with_it_and_callers_are_told_at_once(
    fleet: Fleet, tmp_path: Path
) -> None:
    port, id = ports.free_port(), new_node_id()
    node = await fleet.add(discovery=False, peers=[f"127.0.0.1:{port}"])
    child, said = await start_child(id, fleet.key, tmp_path / "child", port)
    worker = Node(node.backbone, id)
    await worker.connect(said["url"])
    await until(lambda: node.reaches(worker))
    child.kill()
    began = time.monotonic()
    await until(lambda: nobody_answers(node, f"who.{id}"))
    assert time.monotonic() - began < 2
    await until(lambda: not any(psutil.pid_exists(pid) for pid in said["pids"]))
    child.wait(5)
    with suppress(Exception):
        await worker.nc.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_the_next_daemon_replaces_servers_that_outlived_a_frozen_one(fleet: Fleet, tmp_path: Path) -> None:
    """A daemon that is stopped (not killed) leaves its servers running; whoever takes over the folder ends them."""
    port, id = ports.free_port(), new_node_id()
    child, said = await start_child(id, fleet.key, tmp_path / "child", port)
    child.send_signal(signal.SIGSTOP)
    await fleet.add(id, state=tmp_path / "child", discovery=False)
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(said["pids"][0]).status() == psutil.STATUS_ZOMBIE
    os.kill(child.pid, signal.SIGKILL)
    child.wait(5)
