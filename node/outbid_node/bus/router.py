"""The node's door to the other nodes: core NATS, in a full mesh of routes with the routers of the same mesh."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from outbid_contracts.errors import InvalidConfig, OutbidError
from outbid_node.bus import config_text, ports
from outbid_node.bus.files import private_folder
from outbid_node.bus.process import Server
from outbid_node.identity.node import Identity

log = logging.getLogger("outbid.bus")

PING_S, RARE_PING_S = 3, 15
"""Between two pings on each route; and in meshes of MANY nodes: with fifty a router would send and get 65 messages a
second by pings alone (docs/decisions/0022-heartbeats-of-large-meshes.md).
"""

MANY, FEW = 17, 8
"""From so many nodes on pings are rare, until there are so few again."""

_PEER = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9_.-]+):(\d{1,5})\Z")


class Router:
    """Implements `process.Role` for its server. It never gives up: without it the node still serves its own users."""

    name = "router"
    gives_up = False

    def __init__(
        self, *, identity: Identity, folder: Path, binary: Path, bind: str = "127.0.0.1", route_port: int | None
    ) -> None:
        """Write the identity first. `route_port` None: the last one if free, else any."""
        self.server_name = f"{identity.node}-router"
        self.routes: tuple[str, ...] = ()
        self.started = False
        self._ping_s = PING_S
        self._identity = identity
        self._bind = bind
        self._wanted = route_port
        self._ports_file = folder / "ports.json"
        self._route_port = self._leaf_port = self._client_port = 0
        self.server = Server(self, private_folder(folder), binary)

    @property
    def route_port(self) -> int:
        return self._route_port

    @property
    def leaf_port(self) -> int:
        return self._leaf_port

    def choose_ports(self) -> None:
        """Before it runs, because the route port is announced first. Raises InvalidConfig if a given port is taken."""
        last = ports.remembered(self._ports_file)
        if self._wanted is None:
            self._route_port = ports.free_port(last.get("route"), host=self._bind)
        elif ports.is_free(self._wanted, self._bind):
            self._route_port = self._wanted
        else:
            raise InvalidConfig(
                f"route port {self._wanted} is taken by {ports.holder(self._wanted)}; stop it or set another",
                port=self._wanted,
            )
        self._leaf_port = ports.free_port(last.get("leaf"), avoid=frozenset({self._route_port}))
        self._client_port = ports.free_port(avoid=frozenset({self._route_port, self._leaf_port}))
        with suppress(OSError):  # a full disk
            ports.remember(self._ports_file, route=self._route_port, leaf=self._leaf_port)

    async def start(self, routes: Sequence[str]) -> None:
        """Returns once it answers on its route port. May raise ServerFailed; then call it again later."""
        self.routes = tuple(routes)
        await self.server.start()
        self.started = True
        if refusal := await self._identity.enter(self._client_port):
            log.warning("the router does not let its own node in: %s", refusal, extra={"action": "router_refuses"})

    async def set_routes(self, routes: Sequence[str]) -> None:
        """The peers to connect to, host:port. Links that gossip made stay whatever is said here."""
        self.routes = tuple(routes)
        await self.server.apply()

    def suit(self, nodes: int) -> bool:
        """For a mesh of so many nodes; True if `server.apply` is needed for it."""
        before = self._ping_s
        if nodes >= MANY or nodes <= FEW:
            self._ping_s = PING_S if nodes <= FEW else RARE_PING_S
        return self._ping_s != before

    async def stop(self) -> None:
        await self.server.stop()

    def health(self) -> dict[str, Any]:
        return self.server.health() | {"route_port": self._route_port, "routes": list(self.routes)}

    # -- process.Role --------------------------------------------------------------------------------------------

    @property
    def ready_at(self) -> tuple[str, int]:
        """The route port is opened last."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._bind, self._bind)
        return host, self._route_port

    @property
    def ready_tls(self) -> ssl.SSLContext:
        """As a peer would: another program on that port cannot show our mesh's certificate."""
        files = self._identity.routes
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.load_verify_locations(files.authority)
        tls.load_cert_chain(files.certificate, files.key)
        return tls

    def prepare(self, last_words: str) -> None:
        if not self.started and "listening" in last_words:
            self.choose_ports()  # someone took one of ours since we looked
        elif not ports.is_free(self._client_port):
            self._client_port = ports.free_port(avoid=frozenset({self._route_port, self._leaf_port}))

    def config(self) -> str:
        return config_text.router(
            server_name=self.server_name,
            client_port=self._client_port,
            log_file=self.server.log_file,
            cluster=f"outbid-{self._identity.mesh}",
            bind=self._bind,
            route_port=self._route_port,
            leaf_port=self._leaf_port,
            routes=self.routes,
            ping_s=self._ping_s,
            identity=self._identity,
        )

    def gave_up(self, error: OutbidError) -> None:
        raise AssertionError("a router never gives up") from error


def check_peer(peer: str) -> str:
    """`host:port` as given by a person. Raises InvalidConfig."""
    found = _PEER.match(peer.strip())
    if found is None or not 0 < int(found[2]) < 65536:
        raise InvalidConfig(f"peer {peer!r} is not host:port, for example studio.local:6222")
    return peer.strip()
