"""The estimates of a running node, put together: what its history holds, what it tries, what others tell."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from outbid_contracts import subjects
from outbid_contracts.admin import Calibrated, CalibrateReply, CalibrateRequest
from outbid_contracts.capability import ModelFile
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest, OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Resources
from outbid_node.catalogue import Entry
from outbid_node.config_sections import LimitsSection
from outbid_node.estimating.learner import Speed, WarmUp
from outbid_node.estimating.recall import recall_promises, recall_speeds
from outbid_node.estimating.trials import Interrupted, Trials, conclude
from outbid_node.history.interface import History
from outbid_node.history.rows import Calibrations
from outbid_node.micro import Request, Service
from outbid_node.owner import Owner
from outbid_node.runners.pool import device_kind, key_of
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

LOOK_S = 5.0

IDLE_S = 60.0
"""So long nothing ran here before a node tries its models by itself: who has just started it, or has just used it, has
something in mind.
"""

WITHIN_S = 120.0
"""The longest that one model is tried, on a machine whose runners may use all of its time."""

RECALL_S = 0.3
"""A start waits at most so long for what the history holds; what comes later counts from then on."""


class Estimating:
    """`start` before the first offers go out; `run` as long as the node."""

    def __init__(
        self, worker: Worker, owner: Owner, history: History, resources: Callable[[], Resources], limits: LimitsSection
    ) -> None:
        self.worker = worker
        self.catalogue = worker.catalogue
        self.trust = owner.trust
        self._registry = owner.registry
        self._history = history
        self._resources = resources
        self._calibrate = limits.calibrate
        self._trials = Trials(worker.pool)
        self._trying = asyncio.Lock()
        self._tried: set[tuple[str, str | None]] = set()
        self._quiet_since = time.monotonic()
        self._recalling: asyncio.Task[None] | None = None
        worker.on_work = self._trials.interrupt
        owner.registry.on_change.append(self._heard)
        owner.placer.auctioneer.stretch = self.trust.of_bid

    async def start(self) -> None:
        self._recalling = asyncio.create_task(self._recall())
        await asyncio.wait({self._recalling}, timeout=RECALL_S)

    async def run(self) -> None:
        assert self._recalling is not None
        await self._recalling
        while True:
            await asyncio.sleep(LOOK_S)
            if self.worker.attempts:
                self._quiet_since = time.monotonic()
            elif self._calibrate and time.monotonic() - self._quiet_since >= IDLE_S:
                await self._try_what_is_new()

    async def _recall(self) -> None:
        """A fit takes milliseconds, so they are not made all at once. The history failing costs what it knew."""
        try:
            recalled = await recall_speeds(self._history, self.worker.pool.cpu_share)
            for learner in self.catalogue.speeds.recall(recalled):
                learner.speed()
                await asyncio.sleep(0)
            await recall_promises(self._history, self.trust)
        except Exception:
            log.exception("what was learnt before is lost", extra={"action": "recall_failed"})

    def _heard(self, node: NodeId, what: str) -> None:
        peer = self._registry.get(node)
        if peer is not None and node != self.worker.node:
            for offer in peer.presence.offers:
                self.catalogue.speeds.heard(offer)

    # -- calibrations ---------------------------------------------------------------------------------------------

    async def _try_what_is_new(self) -> None:
        """The default model of each capability, once in the life of this node, while nobody needs the machine."""
        for entry in self.catalogue.usable():
            file = entry.default_model
            kind = (entry.capability.name, file.name if file else None)
            known = self.catalogue.learner(entry.capability, file).known
            if known or kind in self._tried or not entry.capability.trials:
                continue
            if not self._may_now(entry, file):
                return
            try:
                await self.calibrate(entry, file)
                self._tried.add(kind)
            except Interrupted:
                self._quiet_since = time.monotonic()
                return
            except OutbidError as error:
                self._tried.add(kind)
                log.info("%s was not calibrated: %s", kind[0], error, extra={"action": "calibration_failed"})

    def _may_now(self, entry: Entry, file: ModelFile | None) -> bool:
        """Nothing runs or is loaded, the person is away, and it costs no battery."""
        terms, room = self.worker.terms(False), self.worker.pool.room(entry.capability, file)
        hindered = bool(terms.refuse) or terms.slower > 1 or terms.most_s is not None or self.worker.draining
        idle = not self.worker.attempts and not self.worker.pool.processes()
        return idle and not hindered and not room.blocked and not self._resources().on_battery

    async def calibrate(self, entry: Entry, file: ModelFile | None) -> tuple[Speed, Speed]:
        """What was believed, and what the trials showed. Raises Interrupted, or an OutbidError that says why not."""
        capability, pool = entry.capability, self.worker.pool
        model = file.name if file else None
        believed, was_warm = self.catalogue.speed(capability, file), pool.room(capability, file).warm
        async with self._trying:
            tried = await self._trials.run(capability, file, dict(entry.settings), WITHIN_S / pool.cpu_share)
        self.worker.offers()  # takes note of the runner's warm-up
        learner = self.catalogue.learner(capability, file)
        shown = conclude(tried, learner, capability.at_most)
        learner.warmed_up(WarmUp(None, shown.rates, shown.fixed_s, source="calibration"))
        self._history.note(
            Calibrations(
                at_ms=time.time_ns() // 1_000_000,
                capability=capability.name,
                model=model,
                device=device_kind(pool.room(capability, file).ready),
                load_s=shown.load_s,
                fixed_s=shown.fixed_s,
                rates=dict(shown.rates),
                crowding=shown.crowding,
                cpu_share=pool.cpu_share,
            )
        )
        if not was_warm:
            pool.leave(key_of(capability, file))
        log.info("%s %s was calibrated", capability.name, model or "", extra={"action": "calibrated"})
        return believed, shown

    def register(self, service: Service) -> None:
        service.add(
            "admin-calibrate", subjects.admin(self.worker.node, "calibrate"), self.order, queue=str(self.worker.node)
        )

    async def order(self, request: Request) -> None:
        """`outbid calibrate`: each capability's default model, or the one named, one after the other."""
        asked = _read(request)
        entries = [entry for entry in self.catalogue.usable() if entry.capability.trials]
        if asked.capability is not None:
            entries = [self.catalogue.find(asked.capability, asked.model)[0]]
        found = []
        for entry in entries:
            file = self.catalogue.find(entry.capability.name, asked.model)[1]
            found.append(await self._ordered(entry, file))
        request.respond(CalibrateReply(node=self.worker.node, found=tuple(found)))

    async def _ordered(self, entry: Entry, file: ModelFile | None) -> Calibrated:
        capability, model = entry.capability.name, file.name if file else None
        if not entry.capability.trials:
            return Calibrated(capability=capability, model=model, error="there are no trials for it")
        try:
            believed, shown = await self.calibrate(entry, file)
        except OutbidError as error:
            return Calibrated(capability=capability, model=model, error=error.message)
        return Calibrated(
            capability=capability,
            model=model,
            rests_on=believed.source,
            believed=_numbers(believed),
            shown=_numbers(shown),
        )


def _numbers(speed: Speed) -> dict[str, float]:
    return {"load_s": speed.load_s, "fixed_s": speed.fixed_s, **{f"{u}_s": rate for u, rate in speed.rates.items()}}


def _read(request: Request) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest("this takes a JSON object")
    return decode(request.data or b"{}", CalibrateRequest, request.format if request.data else Format.JSON)
