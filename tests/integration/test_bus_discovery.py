"""Discovery alone, with real multicast on loopback."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable

import pytest
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from outbid.discovering import discover
from outbid_contracts.announced import SERVICE
from outbid_contracts.ids import NodeId, new_node_id
from outbid_node.bus import discovery as discovery_module
from outbid_node.bus.discovery import Announcement, Discovery, Peer
from tests.waiting import until


def make(mesh: str, on_peer: Callable[[Peer], None], interfaces: tuple[str, ...] = ("127.0.0.1",)) -> Discovery:
    said = Announcement(node=new_node_id(), mesh=mesh, name="n", version="1", route_port=6222, txt={})
    return Discovery(said, on_peer=on_peer, on_gone=lambda peer: None, interfaces=interfaces)


async def test_an_interface_that_is_not_there_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    discovery = make("m", lambda peer: None, interfaces=("203.0.113.77",))
    with caplog.at_level(logging.WARNING, "outbid.bus"):
        discovery.start()
        await until(lambda: discovery.error is not None)
        await until(lambda: sum(getattr(it, "action", "") == "discovery_failed" for it in caplog.records) >= 2)
    await discovery.update(txt={"a": "b"})
    await discovery.stop()


async def test_nonsense_on_the_network_and_a_callback_that_raises_break_nothing() -> None:
    mesh = f"test{secrets.token_hex(4)}"
    seen: list[Peer] = []

    def careless(peer: Peer) -> None:
        seen.append(peer)
        raise RuntimeError("a bug of the caller's")

    discovery = make(mesh, careless)
    discovery.start()
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    bad: list[tuple[str, dict[str, bytes]]] = [
        (new_node_id(), {}),
        (new_node_id(), {"node": b"\xff\xfe", "mesh": mesh.encode()}),
        (new_node_id(), {"node": new_node_id().encode(), "mesh": mesh.encode()}),
        ("Not A Node", {"node": b"Not A Node", "mesh": mesh.encode()}),
    ]
    for name, properties in bad:
        await announce(zeroconf, name, properties)
    good = new_node_id()
    await announce(zeroconf, good, {"node": good.encode(), "mesh": mesh.encode(), "odd": b"\xff"})
    await until(lambda: good in discovery.seen)
    assert [peer.node for peer in seen] == [good]
    await zeroconf.async_close()
    second = make(mesh, lambda peer: None)
    second.start()
    await until(lambda: len(seen) >= 2)
    await asyncio.gather(discovery.stop(), second.stop())


async def announce(zeroconf: AsyncZeroconf, name: str, properties: dict[str, bytes]) -> None:
    address = [socket.inet_aton("127.0.0.1")]
    info = ServiceInfo(
        SERVICE, f"{name}.{SERVICE}", port=1, properties=properties, addresses=address, server="x.local."
    )
    await zeroconf.async_register_service(info, cooperating_responders=True)


# -- with other nodes on loopback ------------------------------------------------------------------------------------


class Watched:
    """A discovery that notes what it is told."""

    def __init__(self, mesh: str, node: str | None = None) -> None:
        self.found: list[Peer] = []
        self.gone: list[Peer] = []
        self.strange: list[tuple[Peer, str]] = []
        said = Announcement(node=NodeId(node or new_node_id()), mesh=mesh, name="n", version="1", route_port=6222)
        self.node = said.node
        self.discovery = Discovery(
            said,
            on_peer=self.found.append,
            on_gone=self.gone.append,
            on_incompatible=lambda peer, remedy: self.strange.append((peer, remedy)),
        )
        self.discovery.start()


@pytest.fixture
def mesh() -> str:
    return f"test{secrets.token_hex(4)}"


async def test_what_changes_is_announced_again_and_a_goodbye_is_heard(mesh: str) -> None:
    one, two = Watched(mesh), Watched(mesh)
    await until(lambda: bool(one.found and two.found))
    await two.discovery.update(txt={"battery": "80"})
    await until(lambda: one.found[-1].txt == {"battery": "80"})
    await two.discovery.stop()
    await until(lambda: [peer.node for peer in one.gone] == [two.node])
    assert two.node not in one.discovery.seen
    await one.discovery.stop()


async def test_meshes_do_not_mix_and_a_node_that_changes_its_mesh_finds_the_new_one(mesh: str) -> None:
    one, two = Watched(mesh), Watched(f"{mesh}b")
    await until(lambda: two.node in one.discovery.seen and one.node in two.discovery.seen)
    assert one.found == two.found == []
    await two.discovery.update(mesh=mesh)
    await until(lambda: bool(one.found and two.found))
    assert (one.found[-1].node, two.found[-1].node) == (two.node, one.node)
    await asyncio.gather(one.discovery.stop(), two.discovery.stop())


async def test_a_peer_of_another_wire_version_is_reported_and_not_used(
    mesh: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, zeroconf, newer = Watched(mesh), AsyncZeroconf(interfaces=["127.0.0.1"]), new_node_id()
    with caplog.at_level(logging.WARNING, "outbid.bus"):
        await announce(zeroconf, newer, {"node": newer.encode(), "mesh": mesh.encode(), "wire": b"999"})
        await until(lambda: bool(one.strange))
    assert one.found == []
    assert one.strange[0][1].startswith("update Outbid on this machine")
    assert [getattr(record, "action", "") for record in caplog.records].count("peer_incompatible") == 1
    assert one.discovery.health()["incompatible"] == [newer]
    await zeroconf.async_close()
    await one.discovery.stop()


async def test_a_node_that_vanished_without_a_goodbye_is_dropped_and_found_when_it_returns(
    mesh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"POLL_S": 0.1, "ASK_AFTER_S": 0.5, "AGAIN_AFTER_S": 1.1, "DROP_AFTER_S": 3.0}.items():
        monkeypatch.setattr(discovery_module, name, seconds)
    one, two, three = Watched(mesh), Watched(mesh), Watched(mesh)
    await until(lambda: len({peer.node for peer in one.found}) == 2)
    await vanish(two)
    await until(lambda: [peer.node for peer in one.gone] == [two.node])
    assert [peer.node for peer in one.discovery.seen.values() if peer.mesh == mesh] == [three.node]  # it answers
    one.found.clear()
    back = Watched(mesh, two.node)
    await until(lambda: [peer.node for peer in one.found] == [two.node])
    await asyncio.gather(*(each.discovery.stop() for each in (one, three, back)))


async def vanish(watched: Watched) -> None:
    """As SIGKILL: its sockets close and nothing is said."""
    discovery = watched.discovery
    assert discovery._zeroconf is not None
    discovery._zeroconf.zeroconf.registry.async_remove(
        list(discovery._zeroconf.zeroconf.registry.async_get_service_infos())
    )
    await discovery.stop()


async def test_the_command_line_sees_every_mesh(mesh: str) -> None:
    one, two = Watched(mesh), Watched(f"{mesh}b")
    await until(lambda: two.node in one.discovery.seen and one.node in two.discovery.seen)
    found = {it.node: it.mesh for it in await discover(1.0)}
    assert (found[one.node], found[two.node]) == (mesh, f"{mesh}b")
    await asyncio.gather(one.discovery.stop(), two.discovery.stop())
