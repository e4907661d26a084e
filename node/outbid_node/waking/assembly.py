"""Waking as a part of a node: remembers the machines it sees, lists those that are away, sends the packet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outbid_contracts import subjects
from outbid_contracts.admin import Sleeper, WakeReply, WakeRequest
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.ids import NodeId
from outbid_node.micro import Request, Service
from outbid_node.registry import Registry
from outbid_node.waking import known
from outbid_node.waking.known import FORGET_MS, Known, Machine
from outbid_node.waking.own import own_macs
from outbid_node.waking.packet import send, ways

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0


class Waking:
    """A guest remembers nobody, is not remembered and tells no hardware address: it is here for a while only."""

    def __init__(self, *, me: NodeId, mesh: str, state: Path, registry: Registry, guest: bool) -> None:
        self.me = me
        self.macs: tuple[str, ...] = ()
        """Of this machine, for its presence."""
        self._mesh, self._state, self._registry, self._guest = mesh, state, registry, guest
        self._known = Known(mesh)
        self._changed = asyncio.Event()
        registry.on_change.append(self._node_changed)

    async def start(self) -> None:
        if self._guest:
            return
        self.macs = await asyncio.to_thread(own_macs)
        self._known = await asyncio.to_thread(known.load, self._state, self._mesh, _now_ms())

    async def run(self) -> None:
        """Write down what changed, and the last of it when the node stops."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(WRITE_EVERY_S)
                self._changed.clear()
                await asyncio.to_thread(self._write)
        finally:
            if self._changed.is_set():
                self._write()

    def _write(self) -> None:
        try:
            known.save(self._state, self._known)
        except OSError as error:
            log.warning("%s cannot be written: %s", known.FILE, error, extra={"action": "machines_not_kept"})

    def _node_changed(self, node: NodeId, what: str) -> None:
        if node == self.me or self._guest or what == "room":
            return
        peer = self._registry.get(node)
        if self._known.gone(node, _now_ms()) if peer is None else self._known.seen(peer.presence, _now_ms()):
            self._changed.set()

    def away(self) -> tuple[Sleeper, ...]:
        """Machines that were here and are not now, the last seen first."""
        return tuple(
            Sleeper(node=one.node, name=one.name, last_seen_ms=one.last_seen_ms, wakeable=bool(one.macs))
            for one in self._away()
        )

    def _away(self) -> Sequence[Machine]:
        oldest_ms = _now_ms() - FORGET_MS
        return [one for one in self._known if one.node not in self._registry and one.last_seen_ms > oldest_ms]

    # -- orders ---------------------------------------------------------------------------------------------------

    def register(self, service: Service) -> None:
        service.add("admin-wake", subjects.admin(self.me, "wake"), self.wake, queue=str(self.me))

    async def wake(self, request: Request) -> None:
        if request.read_format() is Format.TEXT and request.data:
            raise InvalidRequest('this takes a JSON object: {"node": "…"}')
        asked: WakeRequest = decode(request.data or b"{}", WakeRequest, request.format if request.data else Format.JSON)
        machine = self._find(asked.node)
        if not machine.macs:
            raise InvalidRequest(f"no hardware address of {machine.name} is known; it has to be in the mesh once")
        try:
            through: Any = await asyncio.to_thread(lambda: send(machine.macs, ways()))
        except OSError as error:
            raise InvalidRequest(f"the packet cannot be sent from here: {error.strerror or error}") from error
        log.info("sent the magic packet for %s", machine.name, extra={"action": "node_woken", "node": machine.node})
        request.respond(
            WakeReply(node=machine.node, name=machine.name, sent_by=self.me, macs=machine.macs, through=tuple(through))
        )

    def _find(self, node: str) -> Machine:
        """Raises InvalidRequest."""
        there = {peer.presence.node: peer.presence.name for peer in self._registry}
        away = self._away()
        by_id = [one for one in away if one.node == node]
        found = by_id or [one for one in away if one.name == node]
        if len(found) > 1:
            ids = ", ".join(one.node for one in found)
            raise InvalidRequest(f"{len(found)} machines that are away are called {node}; say which by its id: {ids}")
        if found:
            return found[0]
        if node in there or node in there.values():
            raise InvalidRequest(f"{node} is there already")
        names = ", ".join(sorted({one.name for one in away})) or "none"
        raise InvalidRequest(f"no machine called {node} was ever seen here; those away are: {names}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
