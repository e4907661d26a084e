"""The daemon: starts the parts of one node in order, stops them in the opposite one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from outbid_contracts.capability import Machine
from outbid_contracts.errors import Draining
from outbid_contracts.ids import NodeId
from outbid_node.appearance import version
from outbid_node.bus.backbone import Backbone
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.estimating.speeds import Speeds
from outbid_node.files.store import Store, models_folder
from outbid_node.history.assembly import NodeHistory
from outbid_node.identity.keyring import Keyring
from outbid_node.identity.node import Identity
from outbid_node.joining import membership
from outbid_node.measure import measure_machine
from outbid_node.runners.pool import RunnerPool
from outbid_node.wiring import LOOPBACK, Wiring, any_address

log = logging.getLogger(__name__)

LAST_STEP_S = 3.0
"""How long a node that stops waits for the last checkpoints of what it has not finished."""


class Node(Wiring):
    """One machine's part in the mesh. `start`; when `stopping` is done (a part died: `failure` says why, or a restart
    in place is wanted: `restarting`), or at any other time, `stop`.
    """

    async def start(self) -> None:
        """Raises OutbidError if the node cannot run here; what was started by then is stopped again."""
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def _start(self) -> None:
        began = time.monotonic()
        self.log_tap.install()
        self._undo.callback(self.log_tap.remove)
        self.home.open()
        self._undo.callback(self.home.close)
        self.history = NodeHistory(self.config.history, self.home.path)
        self._undo.push_async_callback(self.history.close)
        await self.history.start()
        me = self.home.identity()
        self.id, self.private_key = me.node, bytes.fromhex(me.box)
        self.member = membership.load(self.home.path)
        self.mesh = self.member.mesh if self.member else self.config.mesh.name
        self.keyring = Keyring()
        self.identity = await asyncio.to_thread(self._make_identity)
        self.backbone = self._make_backbone()
        _, machine = await asyncio.gather(
            self.backbone.start(), measure_machine(self.config.limits.cpu_share, self.resources.first)
        )
        self._undo.push_async_callback(self.backbone.stop)
        self.bus = Bus(f"outbid {self.name}")
        await self.bus.connect(self.backbone.url, self.identity.node_creds)
        self._undo.push_async_callback(self.bus.close)
        self.backbone.follow()
        self.speeds = Speeds()
        self.catalogue = await self._make_catalogue(machine)
        await self._start_pool(machine)
        self._wire()
        await self.estimating.start()
        await self.files.start()
        self._undo.push_async_callback(self.files.stop)
        await self.endpoints.start()
        await self.service.start()
        await self.looking.start()
        await self.waking.start()
        await self.presence.start()
        ours = (self.presence.run, self.leases.run, self.watch.run, self.meter.run, self.courtesy.run, self.waking.run)
        for part in (*ours, *self.durable.parts, *self.artifacts.parts, *self.history.parts, self.estimating.run):
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
        await self._undo.aclose()
        log.info("node %s has stopped", self.name, extra={"action": "node_stopped"})

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


@contextlib.asynccontextmanager
async def _at_most(seconds: float) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


__all__ = ["Node", "NodeId"]
