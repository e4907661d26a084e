"""A machine that lost its power is woken by a magic packet that arrives where its network card is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from outbid import Mesh
from outbid_contracts.admin import WakeReply
from outbid_contracts.errors import OutbidError
from outbid_node.waking.packet import PORT, magic
from tests.fleet import eventually
from tests.lan import lan, unavailable

WHY_NOT = unavailable()
pytestmark = [pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""), pytest.mark.slow]

WITHIN_S = 60


async def test_the_packet_reaches_the_card_of_a_machine_that_is_off_also_after_a_restart(tmp_path: Path) -> None:
    with lan(tmp_path) as net:
        pi, pc = net.host("pi"), net.host("pc")
        nodes = [host.node("one") for host in (pi, pc)]
        for node in nodes:
            node.spawn()
        mac = pc.run("cat", "/sys/class/net/lan0/address").strip()

        async def away() -> list[tuple[str, bool]]:
            async with Mesh(state=nodes[0].state) as mesh:
                listed = await mesh.node_list()
                return [("there", True)] * (len(listed.nodes) - 1) + [(one.name, one.wakeable) for one in listed.away]

        async def is_seen(wanted: list[tuple[str, bool]]) -> bool:
            with contextlib.suppress(OutbidError):
                return await pi.call(away) == wanted
            return False

        async def wake() -> WakeReply:
            async with Mesh(state=nodes[0].state) as mesh:
                return await mesh.node("pc").wake()

        await eventually(lambda: is_seen([("there", True)]), WITHIN_S, nodes[0].text())
        pc.power_cut()
        await eventually(lambda: is_seen([("pc", True)]), WITHIN_S, nodes[0].text())
        nodes[0].stop()
        nodes[0].spawn()
        await eventually(lambda: is_seen([("pc", True)]), WITHIN_S, nodes[0].text())
        pc.plug()  # the card of a machine that is off still hears

        async def card() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
                heard.setblocking(False)
                heard.bind(("", PORT))
                return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(heard, 1000), WITHIN_S)

        hearing = asyncio.create_task(pc.call(card))
        reply = await eventually(lambda: _sent(pi.call(wake), hearing), WITHIN_S, "the packet did not arrive")
        assert reply.macs == (mac,)
        assert "10.77.0.255" in reply.through
        assert await hearing == magic(mac)


async def _sent(waking: object, hearing: asyncio.Task[bytes]) -> object:
    """Again and again: the switch forwards a moment after the cable is in."""
    reply = await waking  # type: ignore[misc]
    await asyncio.wait({hearing}, timeout=0.2)
    return reply if hearing.done() else None
