"""The daemon: puts the parts of one node together, starts them in order, stops them in the opposite one."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

from outbid_contracts import subjects
from outbid_contracts.capability import Capability
from outbid_contracts.codec import encode
from outbid_contracts.errors import Draining
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Capacity, Presence
from outbid_contracts.places import LocalNode
from outbid_node.admin import Admin, Drained
from outbid_node.auction import Auctioneer
from outbid_node.bus.backbone import Backbone
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.config import Config
from outbid_node.doctor.endpoint import DoctorEndpoints
from outbid_node.durable.always_on import looks_always_on
from outbid_node.durable.assembly import Durable
from outbid_node.estimate import Speeds
from outbid_node.heartbeat import LeaseKeeper, PresenceKeeper
from outbid_node.home import Home
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.nats_context import write_context
from outbid_node.identity.node import Identity
from outbid_node.joining import membership
from outbid_node.joining.sealed import public_of
from outbid_node.loopwatch import LoopWatch
from outbid_node.measure import measure_machine
from outbid_node.micro import Service
from outbid_node.owner import Owner
from outbid_node.registry import Registry
from outbid_node.resources import ResourceProbe, announcement
from outbid_node.runners.pool import RunnerPool
from outbid_node.services import FaceEndpoints, NodeEndpoints
from outbid_node.trace import Trace
from outbid_node.waiting import WaitingRoom
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

SAVE_EVERY_BEATS = 60
LOOPBACK = "127.0.0.1"


def version() -> str:
    return importlib.metadata.version("outbid")


class Node:
    """One machine's part in the mesh. `start`; when `stopping` is done (a part died: `failure` says why, or a restart
    in
    place is wanted: `restarting`), or at any other time, `stop`.
    """

    def __init__(self, config: Config, declarations: dict[str, Capability], state: Path) -> None:
        self.config = config
        self.declarations = declarations
        self.home = Home(state)
        self.name = config.node.name
        self.boot = secrets.token_hex(4)
        self.state: Literal["up", "draining", "leaving"] = "up"
        self.stopping: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.failure = ""
        self.restarting = False
        self.watch = LoopWatch()
        self._resources = ResourceProbe(state)
        self._on_air: dict[str, str] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._seq = 0
        self._beats = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._undo = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Raises OutbidError if the node cannot run here; what was started by then is stopped again."""
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def _start(self) -> None:
        began = time.monotonic()
        self.home.open()
        self._undo.callback(self.home.close)
        me = self.home.identity()
        self.id, self._private_key = me.node, bytes.fromhex(me.box)
        self.member = membership.load(self.home.path)
        self.mesh = self.member.mesh if self.member else self.config.mesh.name
        self.keyring = Keyring()
        self.identity = await asyncio.to_thread(self._make_identity)
        self.backbone = self._make_backbone()
        _, machine = await asyncio.gather(self.backbone.start(), measure_machine(self.config.limits.cpu_share))
        self._undo.push_async_callback(self.backbone.stop)
        self.bus = Bus(f"outbid {self.name}")
        await self.bus.connect(self.backbone.url, self.identity.node_creds)
        self._undo.push_async_callback(self.bus.close)
        self.speeds = Speeds(self.home.path / "speeds.json")
        only = self.member.capabilities if self.member else ()
        self.catalogue = Catalogue(self.declarations, self.config.capabilities, self.speeds, machine, only)
        await self._start_pool(machine)
        self._wire()
        await self.endpoints.start()
        await self.service.start()
        await self.presence.start()
        for part in (self.presence.run, self.leases.run, self.watch.run, *self.durable.parts):
            self._supervise(part)
        await self.bus.flush()
        self.trace.note("up", name=self.name)
        self._announce()
        for name, entry in self.catalogue.entries.items():
            if entry.missing:
                log.info("%s is not offered: %s", name, entry.missing, extra={"action": "capability_missing"})
        log.info(
            "node %s is up at %s (mesh %s, %.2f s)",
            self.name,
            self.backbone.url,
            self.mesh,
            time.monotonic() - began,
            extra={"action": "node_up", "node": self.id, "url": self.backbone.url},
        )

    def _announce(self) -> None:
        """Tell the programs of this machine where the node is and what to show it."""
        local = LocalNode(
            node=self.id,
            name=self.name,
            url=self.backbone.url,
            pid=os.getpid(),
            version=version(),
            creds=str(self.identity.local_creds),
        )
        self.home.announce(local)
        if self.config.bus.nats_context and self.home.is_usual:
            write_context(local)

    def _make_identity(self) -> Identity:
        key, revoked = self.keyring.key(self.mesh), self.keyring.revoked(self.mesh)
        return Identity(key, self.id, self.home.path, name=self.name, revoked=revoked)

    def _make_backbone(self) -> Backbone:
        config = self.config
        backbone = Backbone(
            identity=self.identity,
            state=self.home.path,
            version=version(),
            port=None if config.bus.port == "auto" else config.bus.port,
            route_port=None if config.bus.route_port == "auto" else config.bus.route_port,
            peers=(*config.mesh.peers, *(self.member.peers if self.member else ())),
            discovery=config.mesh.discovery,
            bind=any_address() if self.member and self.member.open else LOOPBACK,
            txt={},
        )
        backbone.on_failure = lambda error: self._fail(error.message)
        return backbone

    async def _start_pool(self, machine: Any) -> None:
        resources = self._resources.read()
        self.pool = RunnerPool(
            machine=machine,
            budget_mib=self.config.limits.memory_budget_mib(resources.memory_mib),
            keep_warm_s=self.config.limits.keep_warm_s,
        )
        await self.pool.start()
        self._undo.push_async_callback(self.pool.stop, 0)

    def _wire(self) -> None:
        config, me, bus = self.config, self.id, self.bus
        self.registry = Registry(me)
        self.worker = Worker(
            node=me,
            bus=bus,
            pool=self.pool,
            catalogue=self.catalogue,
            power=config.power,
            zone=config.node.zone,
            most=self.member.slots if self.member else None,
        )
        self.auctioneer = Auctioneer(me=me, bus=bus, registry=self.registry, worker=self.worker)
        self.waiting = WaitingRoom(self.registry, config.limits.max_waiting)
        self.owner = Owner(
            me=me,
            bus=bus,
            registry=self.registry,
            auctioneer=self.auctioneer,
            waiting=self.waiting,
            max_attempts=config.limits.max_attempts,
            award_here=self.worker.award,
            cancel_here=self.worker.cancel,
        )
        self._wire_durable()
        self.worker.settle_here = self.durable.book.settle_here
        self.worker.chunk_here = self.owner.heard
        self.worker.elsewhere = self.registry.elsewhere
        self.worker.on_room = self._room
        self.presence = PresenceKeeper(me=me, bus=bus, registry=self.registry, describe=self.describe)
        self.presence.on_beat += [self.worker.stop_orphans, self.owner.forget_results, self._beat]
        self.leases = LeaseKeeper(me=me, bus=bus, registry=self.registry, owner=self.owner)
        self.pool.on_change = self._pool_changed
        bus.on_reconnect = self._reconnected
        bus.on_closed = lambda: self._fail("the ledger refuses this daemon's connection")
        self._wire_admin()
        self.endpoints = NodeEndpoints(
            me=me,
            bus=bus,
            owner=self.owner,
            worker=self.worker,
            admin=self.admin,
            durable=self.durable,
        )
        self.service = Service(
            bus=bus,
            name="outbid",
            id=me,
            version=version(),
            description=f"Outbid node {self.name}",
            metadata={"node": self.name},
        )
        faces = FaceEndpoints(
            me=me,
            bus=bus,
            registry=self.registry,
            owner=self.owner,
            lookup=self.durable.lookup,
            catalogue=self.catalogue,
        )
        faces.register(self.service)
        self.durable.desk.register(self.service)
        self.admin.register(self.service)
        self._doctor().register(self.service)

    def _wire_durable(self) -> None:
        self.worker.trace = self.trace = Trace(self.config.log.trace, self.id, self.boot)
        self.always_on = self._is_always_on()
        self.durable = Durable(
            me=self.id,
            boot=self.boot,
            bus=self.bus,
            registry=self.registry,
            catalogue=self.catalogue,
            owner=self.owner,
            waiting=self.waiting,
            trace=self.trace,
            state=self.home.path,
            always_on=self.always_on,
            adopt_after_s=self.config.durable.adopt_after_s,
            trouble=lambda: self.backbone.jetstream_error,
        )

    def _is_always_on(self) -> bool:
        """A guest is not: the jobs of the hosts must not live on it."""
        if self.member is not None and self.member.guest:
            return False
        chosen = self.config.node.always_on
        return looks_always_on() if chosen == "auto" else chosen

    def _doctor(self) -> DoctorEndpoints:
        return DoctorEndpoints(
            me=self.id,
            name=self.name,
            version=version(),
            config=self.config,
            declarations=self.declarations,
            state=self.home.path,
            mesh=self.mesh,
            open=self.member is not None and self.member.open,
            registry=self.registry,
            watch=self.watch,
            backbone=self.backbone,
        )

    def _wire_admin(self) -> None:
        self.admin = Admin(
            me=self.id,
            home=self.home,
            bus=self.bus,
            registry=self.registry,
            mesh=self.mesh,
            keyring=self.keyring,
            member=self.member,
            private_key=self._private_key,
            refuse=self.backbone.update_revocations,
            route_port=lambda: self.backbone.route_port,
            restart=self.restart,
        )
        self.admin.inviter.on_change = self._announce_on_air
        self.admin.on_drain = self._drain
        self.registry.on_change.append(self._compare_revocations)

    async def stop(self) -> None:
        """Take no new work, give running jobs `limits.grace_s`, hand the rest back, leave."""
        log.info("node %s is stopping", self.name, extra={"action": "node_stopping"})
        self.state = "draining"
        self.trace.note("down")
        self.worker.drain()
        self.durable.book.pause()
        self.presence.publish()
        await self.admin.stop()
        grace_s = self.config.limits.grace_s
        async with _at_most(grace_s):
            await self.worker.idle.wait()
            await self.owner.idle.wait()
        await self.owner.cancel_all(Draining("the node stopped before the job was done"))
        await self.durable.close()
        await self.service.drain(1.0)
        await self.pool.stop(0)
        await self.worker.stop(1.0)
        for task in self._tasks:
            task.cancel()
        self.state = "leaving"
        self.presence.publish()
        self.speeds.save()
        await self._undo.aclose()
        log.info("node %s has stopped", self.name, extra={"action": "node_stopped"})

    # -- what the parts tell each other ---------------------------------------------------------------------------

    def describe(self) -> Presence:
        self._seq += 1
        return Presence(
            node=self.id,
            name=self.name,
            version=version_cached(),
            boot=self.boot,
            seq=self._seq,
            state=self.state,
            zone=self.config.node.zone,
            always_on=self.always_on,
            offers=self.worker.offers(),
            missing={name: entry.missing for name, entry in self.catalogue.entries.items() if entry.missing},
            box=public_of(self._private_key).hex(),
            revoked=self.admin.revoked_digest(),
            trouble=self._trouble(),
            held=self.durable.mirroring.trouble,
            resources=self._resources.read(),
            running=len(self.worker.attempts),
            waiting=len(self.waiting),
        )

    def _trouble(self) -> tuple[str, ...]:
        error = self.backbone.jetstream_error
        return (f"durable storage is off: {error}",) if error else ()

    def _drain(self, drain: bool) -> Drained:
        self.state = "draining" if drain else "up"
        found: Drained = self.worker.drain() if drain else ([], [])
        if not drain:
            self.worker.undrain()
        self.presence.publish()
        return found

    def _room(self, capability: str, model: str | None, free: int) -> None:
        """This node was full and has a free slot again: tell the owners that wait, ourselves first."""
        self.registry.note_free(self.id, capability, model, free)
        capacity = Capacity(node=self.id, capability=capability, model=model, free=free)
        self.bus.post(subjects.capacity(self.id), encode(capacity))

    def _compare_revocations(self, node: NodeId, what: str) -> None:
        peer = self.registry.get(node)
        if peer is not None:
            self.admin.saw(node, peer.presence.revoked)

    def _announce_on_air(self) -> None:
        """What others see of this node by multicast, if it is not what they see already."""
        resources, offers = self._resources.read(), self.worker.offers()
        txt = announcement(resources, offers, self._on_air) | self.admin.announced()
        if txt != self._on_air:
            self._on_air = txt
            task = asyncio.create_task(self.backbone.update_txt(txt))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    def _pool_changed(self) -> None:
        self.worker.recheck_full()
        self.presence.touch()

    def _beat(self) -> None:
        self._beats += 1
        self.admin.inviter.sweep()
        self._announce_on_air()
        expires_s = self.member.expires_s if self.member else None
        if expires_s is not None and time.time() > expires_s:
            log.warning("this guest's time is over; it leaves the mesh", extra={"action": "guest_expired"})
            self.keyring.forget(self.mesh)
            membership.forget(self.home.path)
            self.restart()
        if self._beats % SAVE_EVERY_BEATS == 0:
            self.speeds.save()

    async def _reconnected(self) -> None:
        self.presence.hello()
        self.presence.touch()

    def restart(self) -> None:
        """Stop in order and start again in place, because what is in the state folder has changed."""
        self.restarting = True
        if not self.stopping.done():
            self.stopping.set_result("restart")

    # -- supervision ----------------------------------------------------------------------------------------------

    def _supervise(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(part())
        task.add_done_callback(lambda ended: self._part_ended(part.__qualname__, ended))
        self._tasks.append(task)

    def _part_ended(self, name: str, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        log.critical("%s died: %s", name, error, exc_info=error, extra={"action": "part_died"})
        self._fail(f"{name} died: {error}")

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        if not self.stopping.done():
            self.stopping.set_result(why)


def any_address() -> str:
    """All addresses of this machine: IPv6 and IPv4 where both work, else IPv4."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return "::"
    return "0.0.0.0"


_version = ""


def version_cached() -> str:
    global _version
    _version = _version or version()
    return _version


@contextlib.asynccontextmanager
async def _at_most(seconds: float) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


__all__ = ["Node", "NodeId"]
