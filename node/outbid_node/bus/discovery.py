"""Finding the other nodes by multicast DNS. Comfort only: whatever fails here is logged and tried again, no more.

Once opened, every POLL_S seconds: are the interfaces still the same, and was every node heard of lately? Nodes that
were not are asked for (one question for all, and everybody hears the answers); who stays silent is dropped. Without
that the announcement of a machine that lost its power would stay for 75 minutes.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outbid_contracts import announced
from outbid_contracts.announced import SERVICE, Announced
from outbid_contracts.codec import VERSION
from outbid_contracts.ids import NodeId, is_node_id
from outbid_node.bus.interfaces import LOOPBACK, Choice, Local, choose, local_addresses, nearest_first

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

log = logging.getLogger("outbid.bus")

RETRY_S = (1.0, 2.0, 5.0, 15.0, 30.0)
POLL_S = 2.0
ASK_AFTER_S = 20.0
"""A node not heard of for so long is asked for. Every answer is heard by all, so one question serves the whole LAN."""
AGAIN_AFTER_S = 3.5
DROP_AFTER_S = 32.0
TRIES = 5
SETTLE_S = 1.5
"""Replaced records stay for one more second (RFC 6762, 10.2); then the announcement is read again."""
RESOLVE_MS = 3000
MAX_SEEN = 512
"""Nodes kept, of all meshes: anyone on the network can announce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another node as it announces itself. Nothing here is to be trusted before its router proved to be of the mesh.

    `hosts` are its addresses, the nearest first; `host` is the first of them.
    """

    node: NodeId
    mesh: str
    name: str
    host: str
    route_port: int
    version: str
    wire: int = VERSION
    hosts: tuple[str, ...] = ()
    txt: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Announcement:
    """What this node says of itself; change it through `Discovery.update`."""

    node: NodeId
    mesh: str
    name: str
    version: str
    route_port: int
    txt: Mapping[str, str] = field(default_factory=dict)

    def properties(self) -> dict[str, str]:
        return announced.properties(node=self.node, mesh=self.mesh, name=self.name, version=self.version, txt=self.txt)


def _ignore(peer: Peer, remedy: str) -> None:
    pass


class Discovery:
    """Announces this node and watches for others, over IPv4 and IPv6.

    `interfaces`: addresses and interface names, or "all" for every one that is up, also those that come later.
    `on_peer` is called for each node of the same mesh that appears or changes, `on_gone` when it said goodbye, or was
    not heard of for DROP_AFTER_S (that it is gone from multicast does not mean that it is gone). `on_incompatible` is
    called instead of `on_peer` for one that speaks another wire version, with what to do about it; it is logged too.
    `seen` has other meshes as well.
    """

    def __init__(
        self,
        announcement: Announcement,
        *,
        on_peer: Callable[[Peer], None],
        on_gone: Callable[[Peer], None],
        on_incompatible: Callable[[Peer, str], None] = _ignore,
        interfaces: Sequence[str] | str = (LOOPBACK,),
    ) -> None:
        self.seen: dict[NodeId, Peer] = {}
        self.error: str | None = None
        self._announcement = announcement
        self._wanted = interfaces
        self._on_peer = on_peer
        self._on_gone = on_gone
        self._on_incompatible = on_incompatible
        self._mine: list[Local] = []
        self._choice = Choice((), (), ())
        self._tries = 0
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._asked_at = float("-inf")
        self._ask_after_s = ASK_AFTER_S
        self._poll_now = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Returns at once and never fails."""
        self._spawn(self._run())

    async def update(
        self, *, txt: Mapping[str, str] | None = None, route_port: int | None = None, mesh: str | None = None
    ) -> None:
        """Announce again what changed. After a change of mesh `on_peer` is called for the nodes of the new one."""
        said = self._announcement
        said.txt = said.txt if txt is None else dict(txt)
        said.route_port = route_port or said.route_port
        changed_mesh = mesh is not None and mesh != said.mesh
        said.mesh = mesh or said.mesh
        await self._announce_again()
        if changed_mesh:
            for peer in list(self.seen.values()):
                self._introduce(peer)

    def use(self, interfaces: Sequence[str] | str) -> None:
        """From now on these interfaces, as in the constructor."""
        self._wanted = interfaces
        self._poll_now.set()

    async def stop(self) -> None:
        """Say goodbye and close, within 2 s."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(Exception):
            async with asyncio.timeout(2):
                await self._close()

    def health(self) -> dict[str, Any]:
        mesh = self._announcement.mesh
        same = [peer for peer in self.seen.values() if peer.mesh == mesh]
        incompatible = sorted(peer.name for peer in same if peer.wire != VERSION)
        seen = {
            "state": "on" if self._zeroconf else "starting",
            "addresses": list(self._choice.announced),
            "peers": sorted(peer.name for peer in same if peer.wire == VERSION),
            "other_meshes": sorted({peer.mesh for peer in self.seen.values() if peer.mesh != mesh}),
        }
        seen |= {"incompatible": incompatible} if incompatible else {}
        return seen | ({"error": self.error} if self.error else {})

    # -- opening, and staying open -------------------------------------------------------------------------------

    async def _run(self) -> None:
        failed = 0
        while True:
            try:
                await self._poll()
                self.error = None
                failed, pause_s = 0, POLL_S
            except Exception as error:
                self._failed(error)
                with suppress(Exception):
                    await self._close()
                failed, pause_s = failed + 1, RETRY_S[min(failed, len(RETRY_S) - 1)]
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._poll_now.wait()
            self._poll_now.clear()

    async def _poll(self) -> None:
        choice = await self._look_at_interfaces()
        if self._zeroconf is None:
            await self._open(choice)
        elif choice != self._choice:
            await self._move(choice)
        elif self._incomplete():
            await self._take_interfaces()
        self._look_after_silent(time.monotonic())

    async def _look_at_interfaces(self) -> Choice:
        """Raises OSError if none of the wanted ones is there."""
        if tuple(self._wanted) == (LOOPBACK,):
            return Choice((LOOPBACK,), (), (LOOPBACK,))  # it does not change
        self._mine = await asyncio.to_thread(local_addresses)
        return choose(self._mine, self._wanted)

    async def _open(self, choice: Choice) -> None:
        # 60 ms of import would block the event loop.
        await asyncio.to_thread(importlib.import_module, "zeroconf.asyncio")
        from zeroconf.asyncio import AsyncZeroconf

        try:
            self._zeroconf = AsyncZeroconf(interfaces=choice.where, ip_version=_ip_version(choice))
        except OSError:
            if not (choice.v6 and choice.v4):
                raise
            choice = Choice(choice.v4, (), choice.announced)  # a kernel that offers half of IPv6
            self._zeroconf = AsyncZeroconf(interfaces=choice.where, ip_version=_ip_version(choice))
        self._choice, self._tries = choice, TRIES
        await self._zeroconf.zeroconf.async_wait_for_start()
        self._browse()
        self._info = self._service()
        # Names hold the node id, so nobody else has them: without the probing it takes 0.45 s instead of 1.65 s.
        self._spawn(await self._zeroconf.async_register_service(self._info, cooperating_responders=True))
        log.info("announced at %s", choice, extra={"action": "discovery_up"})

    def _browse(self) -> None:
        from zeroconf import DNSQuestionType
        from zeroconf.asyncio import AsyncServiceBrowser

        assert self._zeroconf is not None
        # Ask for multicast answers: unicast ones, the usual first question, reach only one of the programs that share
        # port 5353, and the next question comes a second later (measured: found after 1.16 s instead of 0.15 s).
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE, handlers=[self._changed], question_type=DNSQuestionType.QM
        )
        self._asked_at = time.monotonic()

    async def _move(self, choice: Choice) -> None:
        """Interfaces or addresses came or went: announce the new ones, ask there, and keep what is known."""
        log.info("addresses are now %s", choice, extra={"action": "discovery_moved"})
        assert self._zeroconf is not None
        self._choice, self._tries = choice, TRIES
        self._info = self._service()
        self._zeroconf.zeroconf.registry.async_update(self._info)
        await self._take_interfaces()
        await self._announce_again()
        if self._browser:
            await self._browser.async_cancel()
        self._browse()
        for peer in list(self.seen.values()):
            self._look_up(peer.node)  # another of its addresses may be nearer now

    async def _take_interfaces(self) -> None:
        """An IPv6 address that is a second old may still be refused; then again at the next poll, a few times."""
        assert self._zeroconf is not None
        zeroconf = self._zeroconf.zeroconf
        self._tries -= 1
        await zeroconf.async_update_interfaces(self._choice.where, _ip_version(self._choice))

    def _incomplete(self) -> bool:
        assert self._zeroconf is not None
        return self._tries > 0 and len(self._zeroconf.zeroconf.engine.senders) < len(self._choice.where)

    async def _announce_again(self) -> None:
        if self._zeroconf is None or self._info is None:
            return  # it will be said at the first announcement
        try:
            self._info = self._service()
            self._spawn(await self._zeroconf.async_update_service(self._info))
        except Exception as error:
            self._failed(error)

    async def _close(self) -> None:
        zeroconf, browser = self._zeroconf, self._browser
        self._zeroconf = self._browser = self._info = None
        self.seen.clear()
        if browser:
            await browser.async_cancel()
        if zeroconf:
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()

    def _service(self) -> AsyncServiceInfo:
        from zeroconf.asyncio import AsyncServiceInfo

        said = self._announcement
        return AsyncServiceInfo(
            SERVICE,
            announced.full_name(said.node),
            port=said.route_port,
            properties=said.properties(),
            server=f"outbid-{said.node}.local.",
            addresses=[ipaddress.ip_address(address).packed for address in self._choice.announced],
        )

    # -- what others say -----------------------------------------------------------------------------------------

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called by the browser in the event loop."""
        node = name.removesuffix("." + SERVICE)
        if node == self._announcement.node or not is_node_id(node):
            return
        if state_change.name == "Removed":
            self._lost(NodeId(node))
        else:
            self._look_up(NodeId(node))

    def _look_up(self, node: NodeId) -> None:
        if self._zeroconf is None:
            return
        from zeroconf.asyncio import AsyncServiceInfo

        self._spawn(self._resolve(self._zeroconf.zeroconf, AsyncServiceInfo(SERVICE, announced.full_name(node))))

    async def _resolve(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        """Mostly it is in the cache. In a task, so that nonsense from the network fails here and not in zeroconf."""
        if not info.load_from_cache(zeroconf) and not await info.async_request(zeroconf, RESOLVE_MS):
            return
        self._found(info)
        await asyncio.sleep(SETTLE_S)
        if info.load_from_cache(zeroconf):
            self._found(info)

    def _found(self, info: AsyncServiceInfo) -> None:
        peer = self._peer(announced.read(info.name, info.port, info.parsed_addresses(), info.decoded_properties))
        if peer is None or peer == self.seen.get(peer.node):
            return
        if peer.node not in self.seen and len(self.seen) >= MAX_SEEN:
            return
        self.seen[peer.node] = peer
        self._introduce(peer)

    def _peer(self, said: Announced | None) -> Peer | None:
        hosts = nearest_first(said.addresses, self._mine) if said else ()
        if said is None or not hosts:
            return None
        return Peer(
            node=said.node,
            mesh=said.mesh,
            name=said.name,
            host=hosts[0],
            hosts=hosts,
            route_port=said.port,
            version=said.version,
            wire=said.wire,
            txt=said.txt,
        )

    def _introduce(self, peer: Peer) -> None:
        if peer.mesh != self._announcement.mesh:
            return
        if peer.wire == VERSION:
            self._tell(peer, self._on_peer, peer)
            return
        remedy = announced.remedy(peer.name, peer.wire)
        log.warning("%s is of this mesh but cannot be understood: %s", peer.name, remedy, extra=_said(peer))
        self._tell(peer, self._on_incompatible, peer, remedy)

    def _lost(self, node: NodeId) -> None:
        gone = self.seen.pop(node, None)
        if gone and gone.mesh == self._announcement.mesh and gone.wire == VERSION:
            self._tell(gone, self._on_gone, gone)

    # -- who was not heard of ------------------------------------------------------------------------------------

    def _look_after_silent(self, now: float) -> None:
        """A network of which nothing is known is asked too: both sides of a cut that has healed look like that."""
        ages = {node: self._silent_s(node, now) for node in self.seen}
        patience_s = AGAIN_AFTER_S if ages else self._ask_after_s
        if max(ages.values(), default=float("inf")) > self._ask_after_s and now - self._asked_at > patience_s:
            self._ask()
        for node, silent_s in ages.items():
            if silent_s > DROP_AFTER_S:
                self._forget(node)

    def _silent_s(self, node: NodeId, now: float) -> float:
        """Since any of its records was received. (zeroconf's clock is the monotonic one, in milliseconds.)"""
        received = [record.created for record in self._records(node)]
        return now - max(received) / 1000 if received else float("inf")

    def _records(self, node: NodeId) -> list[Any]:
        """Its pointer, address and text in zeroconf's cache."""
        assert self._zeroconf is not None
        cache, name = self._zeroconf.zeroconf.cache, announced.full_name(node)
        pointers = [it for it in cache.async_entries_with_name(SERVICE) if getattr(it, "alias", "").lower() == name]
        return [*pointers, *cache.async_entries_with_name(name)]

    def _ask(self) -> None:
        """Who is there? By multicast and without saying who is known, so that everybody answers."""
        assert self._zeroconf is not None
        dns: Any = importlib.import_module("zeroconf")  # its stubs do not list these two
        query, pointer, internet = 0, 12, 1
        question = dns.DNSOutgoing(query)
        question.add_question(dns.DNSQuestion(SERVICE, pointer, internet))
        self._zeroconf.zeroconf.async_send(question)
        self._asked_at = time.monotonic()
        self._ask_after_s = ASK_AFTER_S * random.uniform(0.9, 1.1)  # so that not all ask at once

    def _forget(self, node: NodeId) -> None:
        """As if it had said goodbye; when it is heard again, it is new."""
        assert self._zeroconf is not None
        self._zeroconf.zeroconf.cache.async_remove_records(self._records(node))
        self._lost(node)

    # -- small things --------------------------------------------------------------------------------------------

    def _tell(self, peer: Peer, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("peer %s", peer.node, extra={"action": "discovery_callback_failed"})

    def _failed(self, error: Exception) -> None:
        self.error = f"{type(error).__name__}: {error}"
        log.warning("discovery does not work: %s", self.error, extra={"action": "discovery_failed"})

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._failed(error)


def _ip_version(choice: Choice) -> Any:
    from zeroconf import IPVersion

    if choice.v4 and choice.v6:
        return IPVersion.All
    return IPVersion.V6Only if choice.v6 else IPVersion.V4Only


def _said(peer: Peer) -> dict[str, str]:
    return {"action": "peer_incompatible", "peer": peer.node}
