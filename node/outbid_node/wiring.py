"""The parts of one node, and what they tell each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from pathlib import Path
from typing import Literal

from outbid_contracts import subjects
from outbid_contracts.capability import Capability
from outbid_contracts.codec import encode
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
from outbid_node.courtesy.assembly import Courtesy
from outbid_node.doctor.endpoint import DoctorEndpoints
from outbid_node.durable.always_on import looks_always_on
from outbid_node.durable.assembly import Durable
from outbid_node.estimating.assembly import Estimating
from outbid_node.files.service import PURPOSE, ModelFiles
from outbid_node.files.store import Store
from outbid_node.heartbeat import LeaseKeeper, PresenceKeeper
from outbid_node.history.assembly import NodeHistory
from outbid_node.history.desk import HistoryDesk
from outbid_node.history.people import People
from outbid_node.history.recalled import Recall
from outbid_node.home import Home
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.node import Identity
from outbid_node.joining import membership
from outbid_node.joining.membership import Membership
from outbid_node.looking.assembly import Looking
from outbid_node.looking.log_tap import LogTap
from outbid_node.loopwatch import LoopWatch
from outbid_node.micro import Service
from outbid_node.owner import Owner
from outbid_node.pinning import Pinning
from outbid_node.policies import Policies
from outbid_node.power.assembly import make_meter
from outbid_node.prefix import Prefixes
from outbid_node.quotas import quotas_of
from outbid_node.registry import OfferKey, Registry
from outbid_node.resources import ResourceProbe
from outbid_node.runners.memory import Memory, whole_and_free
from outbid_node.runners.pool import RunnerPool
from outbid_node.services import FaceEndpoints, NodeEndpoints
from outbid_node.trace import Trace
from outbid_node.waiting import WaitingRoom
from outbid_node.waking.assembly import Waking
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class Wiring:
    """Makes the parts (`_wire`) out of those that `app.Node` has started by then: history, backbone, bus, catalogue and
    pool.
    """

    history: NodeHistory
    id: NodeId
    private_key: bytes
    member: Membership | None
    mesh: str
    keyring: Keyring
    identity: Identity
    backbone: Backbone
    bus: Bus
    store: Store
    catalogue: Catalogue
    pool: RunnerPool

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
        self.log_tap = LogTap()
        self.resources = ResourceProbe(state)
        self._tasks: list[asyncio.Task[None]] = []
        self._undo = contextlib.AsyncExitStack()
        self.appearance = Appearance(self)

    @property
    def is_guest(self) -> bool:
        return self.member is not None and self.member.guest

    def _memory(self) -> tuple[Memory, Memory, Memory]:
        """What models may take, what there is, and what of it is free."""
        limits, (whole, free) = self.config.limits, whole_and_free(self.resources.read())
        ram_mib = limits.memory_budget_mib(int(whole.ram_mib))
        return Memory(ram_mib, limits.gpu_memory_budget_mib(int(whole.gpu_mib))), whole, free

    def _wire(self) -> None:
        config, me, bus = self.config, self.id, self.bus
        self.catalogue.prefixes = self.pool.prefixes = Prefixes(self.keyring.key(self.mesh).derive("prefix"))
        self.registry = Registry(me)
        self.meter = make_meter(config.power, self.resources, self.pool, self.history.log, self.catalogue)
        self.worker = Worker(
            node=me,
            bus=bus,
            pool=self.pool,
            catalogue=self.catalogue,
            meter=self.meter,
            zone=config.node.zone,
            most=self.member.slots if self.member else None,
        )
        self.auctioneer = Auctioneer(me=me, bus=bus, registry=self.registry, worker=self.worker)
        quotas = quotas_of(config, self.keyring, self.mesh)
        self.waiting = WaitingRoom(self.registry, config.limits.max_waiting, quotas)
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
            guest=self.is_guest,
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
        self._wire_courtesy()
        self.waking = Waking(me=me, mesh=self.mesh, state=self.home.path, registry=self.registry, guest=self.is_guest)
        self.looking = Looking(me=me, name=self.name, bus=bus, owner=self.owner, worker=self.worker, tap=self.log_tap)
        self.presence.on_beat += [self.worker.stop_orphans, self.owner.forget_results, self.looking.sweep, self._beat]
        self.watch.at_rest = lambda: not self.worker.attempts and not self.owner.running
        self.leases = LeaseKeeper(me=me, bus=bus, registry=self.registry, owner=self.owner)
        self.pool.on_change = self._pool_changed
        self.history.attach(owner=self.owner, worker=self.worker, registry=self.registry, resources=self.resources)
        self.estimating = Estimating(self.worker, self.owner, self.history.log, self.resources.read, config.limits)
        bus.on_reconnect = self._reconnected
        bus.on_closed = lambda: self._fail("the ledger refuses this daemon's connection")
        self._wire_admin()
        desk = HistoryDesk(me, bus, self.registry, self.history, People(self.keyring, self.mesh), self.home.path)
        self.endpoints = NodeEndpoints(
            me=me,
            bus=bus,
            owner=self.owner,
            worker=self.worker,
            admin=self.admin,
            durable=self.durable,
            artifacts=self.artifacts,
            files=self._wire_files(),
            history=desk,
        )
        self.service = Service(
            bus=bus,
            name="outbid",
            id=me,
            version=version(),
            description=f"Outbid node {self.name}",
            metadata={"node": self.name},
        )
        policies = self.durable.desk.policies = Policies(config.policy)
        self.durable.lookup.recall = Recall(me, self.history.log)
        faces = FaceEndpoints(
            me=me,
            bus=bus,
            registry=self.registry,
            owner=self.owner,
            lookup=self.durable.lookup,
            catalogue=self.catalogue,
            policies=policies,
        )
        faces.away = self.waking.away
        faces.register(self.service)
        self.durable.desk.register(self.service)
        desk.register(self.service)
        self.artifacts.desk.register(self.service)
        self.files.register(self.service)
        self.admin.register(self.service)
        self.courtesy.register(self.service)
        self.pinning.register(self.service)
        self.estimating.register(self.service)
        self.looking.register(self.service)
        self.waking.register(self.service)
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

    def _wire_courtesy(self) -> None:
        self.courtesy = Courtesy(
            me=self.id,
            section=self.config.courtesy,
            state=self.home.path,
            worker=self.worker,
            pool=self.pool,
            resources=self.resources.read,
            touch=self.presence.touch,
            history=self.history.log,
        )
        self.pinning = Pinning(
            me=self.id,
            state=self.home.path,
            pool=self.pool,
            catalogue=self.catalogue,
            may_load=lambda: not self.courtesy.frees_memory,
            touch=self.presence.touch,
        )
        self.waiting.own_room = lambda key: self.worker.own_room(*key)

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
            serve=not self.is_guest,
            pool=self.pool,
            on_change=self._models_changed,
        )
        return self.files

    def _is_always_on(self) -> bool:
        """A guest is not: the jobs of the hosts must not live on it."""
        if self.is_guest:
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

    # -- what the parts tell each other ---------------------------------------------------------------------------

    def _drain(self, drain: bool) -> Drained:
        self.state = "draining" if drain else "up"
        self.history.event("drain" if drain else "undrain")
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
        self.pool.heed(*self._memory())
        self.pinning.keep()
        self.admin.inviter.sweep()
        self.appearance.update_on_air()
        self.backbone.suit(len(self.registry))
        expires_s = self.member.expires_s if self.member else None
        if expires_s is not None and time.time() > expires_s:
            log.warning("this guest's time is over; it leaves the mesh", extra={"action": "guest_expired"})
            self.keyring.forget(self.mesh)
            membership.forget(self.home.path)
            self.restart()

    async def _reconnected(self) -> None:
        self.presence.hello()
        self.presence.touch()

    def restart(self) -> None:
        """Stop in order and start again in place, because what is in the state folder has changed."""
        self.restarting = True
        if not self.stopping.done():
            self.stopping.set_result("restart")

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
