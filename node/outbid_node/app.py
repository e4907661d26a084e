"""The daemon: puts the parts of one node together, starts them in order, stops them in the opposite one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

from outbid_contracts import subjects
from outbid_contracts.capability import Capability, Machine
from outbid_contracts.codec import encode
from outbid_contracts.errors import Draining
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Capacity
from outbid_node.admin import Admin, Drained
from outbid_node.appearance import Appearance, version
from outbid_node.artifacts.assembly import Artifacts
from outbid_node.auction import Auctioneer
from outbid_node.bus.backbone import Backbone
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.config import Config
from outbid_node.doctor.endpoint import DoctorEndpoints
from outbid_node.durable.always_on import looks_always_on
from outbid_node.durable.assembly import Durable
from outbid_node.estimate import Speeds
from outbid_node.files.service import PURPOSE, ModelFiles
from outbid_node.files.store import Store, models_folder
from outbid_node.heartbeat import LeaseKeeper, PresenceKeeper
from outbid_node.home import Home
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.node import Identity
from outbid_node.joining import membership
from outbid_node.loopwatch import LoopWatch
from outbid_node.measure import measure_machine
from outbid_node.micro import Service
from outbid_node.owner import Owner
from outbid_node.power.meter import DeclaredMeter
from outbid_node.registry import OfferKey, Registry
from outbid_node.resources import ResourceProbe
from outbid_node.runners.memory import Memory, whole_and_free
from outbid_node.runners.pool import RunnerPool
from outbid_node.services import FaceEndpoints, NodeEndpoints
from outbid_node.trace import Trace
from outbid_node.waiting import WaitingRoom
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

SAVE_EVERY_BEATS = 60

LAST_STEP_S = 3.0
"""How long a node that stops waits for the last checkpoints of what it has not finished."""

LOOPBACK = "127.0.0.1"


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
        self.resources = ResourceProbe(state)
        self._beats = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._undo = contextlib.AsyncExitStack()
        self.appearance = Appearance(self)

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
        self.id, self.private_key = me.node, bytes.fromhex(me.box)
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
        self.catalogue = await self._make_catalogue(machine)
        await self._start_pool(machine)
        self._wire()
        await self.files.start()
        self._undo.push_async_callback(self.files.stop)
        await self.endpoints.start()
        await self.service.start()
        await self.presence.start()
        for part in (self.presence.run, self.leases.run, self.watch.run, *self.durable.parts, *self.artifacts.parts):
            self._supervise(part)
        await self.bus.flush()
        self.trace.note("up", name=self.name)
        self.appearance.announce()
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

    async def _make_catalogue(self, machine: Machine) -> Catalogue:
        """In a thread: it looks for models on the disk."""
        only = self.member.capabilities if self.member else ()
        self.store = Store(models_folder(self.config.models.folder, self.home))
        pulled = [str(kept.folder) for kept in await asyncio.to_thread(self.store.kept)]
        return await asyncio.to_thread(
            Catalogue, self.declarations, self.config.capabilities, self.speeds, machine, only, pulled
        )

    async def _start_pool(self, machine: Any) -> None:
        budget, _, _ = self._memory()
        self.pool = RunnerPool(
            machine=machine,
            budget_mib=budget.ram_mib,
            gpu_budget_mib=budget.gpu_mib,
            keep_warm_s=self.config.limits.keep_warm_s,
        )
        await self.pool.start()
        self._undo.push_async_callback(self.pool.stop, 0)

    def _memory(self) -> tuple[Memory, Memory, Memory]:
        """What models may take, what there is, and what of it is free."""
        limits, (whole, free) = self.config.limits, whole_and_free(self.resources.read())
        ram_mib = limits.memory_budget_mib(int(whole.ram_mib))
        return Memory(ram_mib, limits.gpu_memory_budget_mib(int(whole.gpu_mib))), whole, free

    def _wire(self) -> None:
        config, me, bus = self.config, self.id, self.bus
        self.registry = Registry(me)
        self.worker = Worker(
            node=me,
            bus=bus,
            pool=self.pool,
            catalogue=self.catalogue,
            meter=DeclaredMeter(config.power),
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
        self.artifacts = Artifacts(
            me=me,
            bus=bus,
            registry=self.registry,
            worker=self.worker,
            section=config.artifacts,
            guest=self.member is not None and self.member.guest,
            state=self.home.path,
            trouble=lambda: self.backbone.jetstream_error,
        )
        self.worker.settle_here = self.durable.book.settle_here
        self.worker.save_here = self.owner.saved
        self.worker.chunk_here = self.owner.heard
        self.worker.elsewhere = self.registry.elsewhere
        self.worker.on_room = self._room
        self.presence = PresenceKeeper(me=me, bus=bus, registry=self.registry, describe=self.appearance.presence)
        self.registry.on_change.append(self._heed_wants)
        self.waiting.on_wait = self._job_waits
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
            artifacts=self.artifacts,
            files=self._wire_files(),
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
        self.artifacts.desk.register(self.service)
        self.files.register(self.service)
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

    def _wire_files(self) -> ModelFiles:
        """A guest may fetch models, but does not give any."""
        self.files = ModelFiles(
            me=self.id,
            bus=self.bus,
            registry=self.registry,
            catalogue=self.catalogue,
            store=self.store,
            section=self.config.models,
            key=self.identity.key.derive(PURPOSE),
            host=any_address() if self.member and self.member.open else LOOPBACK,
            serve=self.member is None or not self.member.guest,
            pool=self.pool,
            on_change=self._models_changed,
        )
        return self.files

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
            private_key=self.private_key,
            refuse=self.backbone.update_revocations,
            route_port=lambda: self.backbone.route_port,
            restart=self.restart,
        )
        self.admin.inviter.on_change = self.appearance.update_on_air
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
        if self.worker.leave():
            async with _at_most(LAST_STEP_S):
                await self.worker.idle.wait()
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

    def _heed_wants(self, node: NodeId, what: str) -> None:
        peer = self.registry.get(node)
        self.worker.heed_wants(node, peer.presence.wants if peer is not None else ())

    def _job_waits(self, wanted: OfferKey) -> None:
        """The first job for this work waits here: nodes where another model is in the way count from now."""
        if any(standing.offer.blocked for standing in self.registry.standing(*wanted)):
            self.presence.touch()

    def _pool_changed(self) -> None:
        self.worker.recheck_full()
        self.presence.touch()

    def _models_changed(self) -> None:
        """At once, so that who is told that a model is there finds it in the lists."""
        self.worker.recheck_full()
        self.presence.publish()

    def _beat(self) -> None:
        self._beats += 1
        self.pool.heed(*self._memory())
        self.admin.inviter.sweep()
        self.appearance.update_on_air()
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


@contextlib.asynccontextmanager
async def _at_most(seconds: float) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


__all__ = ["Node", "NodeId"]
