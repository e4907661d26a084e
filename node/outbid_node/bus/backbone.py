"""The servers and the discovery of one node, as one thing to start and stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_node.bus import binary
from outbid_node.bus.config_text import listen
from outbid_node.bus.discovery import Announcement, Discovery, Peer
from outbid_node.bus.files import private_folder
from outbid_node.bus.ledger import Ledger
from outbid_node.bus.router import Router, check_peer
from outbid_node.identity.node import Identity

log = logging.getLogger("outbid.bus")

MAX_ROUTES = 16
"""Discovered peers that we connect to ourselves; gossip tells the servers the rest."""
RETRY_S = 2.0


def _not_interested(error: OutbidError) -> None:
    pass


class Backbone:
    """`on_failure` (set it before `start`) is called when the ledger is given up: the daemon is then to stop loudly.

    The state folder must be this daemon's alone (its lock is the daemon's business). Start it from a thread that
    lives as long as the node: on Linux the servers end with that thread.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        state: Path,
        version: str,
        port: int | None,
        route_port: int | None,
        peers: Sequence[str],
        discovery: bool,
        bind: str = "127.0.0.1",
        txt: Mapping[str, str],
    ) -> None:
        """Raises InvalidConfig for a peer that is not host:port, or no usable nats-server.

        `bind`: where the router listens; other than on loopback it runs from the start, and discovery uses all
        interfaces. On loopback, `peers` and `route_port` None or empty: the router waits for a first peer.
        """
        self.on_failure: Callable[[OutbidError], None] = _not_interested
        self.identity = identity
        self._given = tuple(check_peer(peer) for peer in peers)
        self._router_now = bool(self._given) or route_port is not None or bind != "127.0.0.1"
        self._known: dict[NodeId, str] = {}
        self._gone: set[NodeId] = set()
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        folder, server = private_folder(state / "bus"), binary.find()
        self.ledger = Ledger(identity=identity, folder=folder, binary=server, port=port, on_failure=self._ledger_failed)
        self.router = Router(identity=identity, folder=folder, binary=server, bind=bind, route_port=route_port)
        self._announcement = Announcement(
            node=identity.node, mesh=identity.mesh, name=identity.name, version=version, route_port=0, txt=dict(txt)
        )
        self.discovery = (
            Discovery(
                self._announcement,
                on_peer=self._peer_seen,
                on_gone=self._peer_gone,
                interfaces=(bind,) if bind == "127.0.0.1" else "all",
            )
            if discovery
            else None
        )

    @property
    def url(self) -> str:
        """Where the daemon and local programs connect; the same over restarts of the ledger."""
        return self.ledger.url

    @property
    def route_port(self) -> int:
        return self.router.route_port

    @property
    def jetstream_error(self) -> str | None:
        """Why durable work is not possible now, for people; None when it is."""
        return self.ledger.jetstream_error

    async def start(self) -> None:
        """Returns when the ledger answers and discovery is under way. Peers are heard from now on and linked to from
        `follow` on.

        Writes the identity's files. Raises InvalidConfig when a given port is taken (names the holder), ServerFailed
        when the ledger does not run.
        """
        self.identity.write()
        self.router.choose_ports()
        self._announcement.route_port = self.router.route_port
        if self.discovery:
            self.discovery.start()
        try:
            await self.ledger.start()
        except BaseException:
            await self.stop()
            raise

    def follow(self) -> None:
        """Bring the router up when there is a peer, and link the ledger to it, in the background.

        To be called once the daemon's own connection stands: the link is a reload of the ledger, which hangs up on who
        is just signing in, and nats-py, when it has the first answer by then, closes for good (seen with 2.15.1 and
        nats-py 2.16; who is in stays in, 300 of 300).
        """
        self._worker = asyncio.create_task(self._follow(), name="router follows peers")
        self._changed.set()

    async def update_txt(self, txt: Mapping[str, str]) -> None:
        self._announcement.txt = dict(txt)
        if self.discovery:
            await self.discovery.update(txt=txt)

    def suit(self, nodes: int) -> None:
        """So many nodes are in the mesh now."""
        if self.router.suit(nodes):
            self._changed.set()

    async def update_revocations(self, revoked: Mapping[str, int]) -> None:
        """Refuse these users: public key, and the time (Unix seconds) up to which its credentials are void. Those who
        are connected to this node are thrown out before this returns, or within 0.1 s.
        """
        self.identity.revoked = dict(revoked)
        await asyncio.gather(self.ledger.server.apply(), self.router.server.apply())

    async def stop(self) -> None:
        """Say goodbye, then stop the router, then the ledger. Never raises."""
        if self._worker:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        parts = [self.router.stop(), *([self.discovery.stop()] if self.discovery else [])]
        for done in (*await asyncio.gather(*parts, return_exceptions=True), await _outcome(self.ledger)):
            if isinstance(done, BaseException):
                log.error("stopping the bus: %s", done, exc_info=done, extra={"action": "bus_stop_failed"})

    def health(self) -> dict[str, Any]:
        off = {"state": "off"}
        return {
            "ledger": self.ledger.health(),
            "router": self.router.health(),
            "discovery": self.discovery.health() if self.discovery else off,
        }

    # -- following the peers -------------------------------------------------------------------------------------

    def _peer_seen(self, peer: Peer) -> None:
        route = listen(peer.host, peer.route_port)
        self._gone.discard(peer.node)
        if self._known.get(peer.node) == route:
            return
        if peer.node not in self._known and len(self._known) >= MAX_ROUTES:
            if not self._gone:
                return  # gossip, or its own route to us, will do
            self._known.pop(self._gone.pop(), None)
        self._known[peer.node] = route
        log.info("found %s at %s", peer.name, route, extra={"action": "peer_found", "peer": peer.node})
        self._router_now = True
        self._changed.set()

    def _peer_gone(self, peer: Peer) -> None:
        """Its route stays until the place is needed: that multicast lost it must not break a link that works."""
        self._gone.add(peer.node)
        log.info("%s left", peer.name, extra={"action": "peer_gone", "peer": peer.node})

    def _routes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._given, *self._known.values())))

    async def _follow(self) -> None:
        """The one place that starts the router, links the ledger to it and tells it of peers."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._router_now:
                continue
            try:
                await self._bring_up()
            except Exception as error:
                log.error("router: %s", error, extra={"action": "router_failed"})
                await asyncio.sleep(RETRY_S)
                self._changed.set()

    async def _bring_up(self) -> None:
        if self.router.started:
            await self.router.set_routes(self._routes())
        else:
            await self.router.start(self._routes())
        await self.ledger.link(self.router.leaf_port)
        if self.discovery and self.router.route_port != self._announcement.route_port:
            await self.discovery.update(route_port=self.router.route_port)

    def _ledger_failed(self, error: OutbidError) -> None:
        self.on_failure(error)


async def _outcome(ledger: Ledger) -> BaseException | None:
    try:
        await ledger.stop()
    except Exception as error:
        return error
    return None
