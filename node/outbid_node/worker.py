"""The working side of a node: bids on calls for proposals, takes awards, runs attempts, settles with their owners."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from outbid_contracts import subjects
from outbid_contracts.codec import Format, encode
from outbid_contracts.errors import ErrorBody, OutbidError, PayloadTooLarge
from outbid_contracts.events import Chunk, Loading, Progressed
from outbid_contracts.ids import JobId, NodeId, new_bid_id
from outbid_contracts.messages import (
    Accepted,
    Award,
    AwardReply,
    Bid,
    CallForProposals,
    CancelAttempt,
    Decline,
    Declined,
    Done,
    Failed,
    Job,
    LeaseCheck,
    LeaseState,
    Offer,
    Outcome,
    Proposal,
    Settle,
    Settled,
    Stopped,
)
from outbid_contracts.policy import Zone
from outbid_contracts.runner import Ready, RunDone, RunFailed
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.client import Bus, NoResponders
from outbid_node.config import PowerSection
from outbid_node.estimate import energy_price, estimate
from outbid_node.runners.pool import RunnerPool
from outbid_node.trace import Trace

log = logging.getLogger(__name__)

BID_TTL_MS = 5_000
"""How long a bid stands; the award follows within milliseconds unless the owner is in trouble."""

OWNER_SILENT_S = 6.0
"""An owner that has not asked about its attempts for this long is dead or cut off: its attempts are stopped."""

MAX_MESSAGE_BYTES = 15 * 1024 * 1024
"""What fits the bus (16 MiB a message) with its headers."""

SETTLE_TRIES = 20
"""One-second tries to hand a result to its owner before it is dropped (an interactive caller is gone by then)."""

KEEP_DURABLE_S = 3600.0
"""How long the result of a durable job is offered to an owner that is away."""

DURABLE_TRY_S = 5.0
"""Its owner acknowledges it once it is on disk. Also the longest pause between two tries."""


class Attempt:
    """One attempt under way: receives what its runner says (the pool's AttemptSink) and passes it on."""

    def __init__(self, worker: Worker, award: Award, entry: Entry, offer: Offer) -> None:
        job = award.job
        self.worker = worker
        self.job = job
        self.number = award.attempt
        self.entry = entry
        self.model = offer.model
        self.running_beside = max(0, offer.slots - offer.free)
        self.promised_s = estimate(offer, job.work).finish_s
        self.was_warm = offer.warm
        self.started = time.monotonic()
        self.owner_heard = self.started
        self.chunks = self.after = award.chunks
        self.given_back = ""
        """Why this node stops it by itself, if it does."""
        self._format = Format.MSGPACK if job.format == Format.MSGPACK else Format.JSON

    @property
    def key(self) -> str:
        return f"{self.job.id}/{self.number}"

    @property
    def can_go_on_elsewhere(self) -> bool:
        return self.entry.capability.resume == "tokens" and bool(self.job.reply)

    def loading(self, fraction: float | None, note: str) -> None:
        self._tell(Loading(job=self.job.id, node=self.worker.node, model=self.model, fraction=fraction))

    def chunk(self, data: dict[str, Any], payloads: list[bytes]) -> None:
        piece = Chunk(job=self.job.id, seq=self.chunks, attempt=self.number, data=data)
        self._tell(piece)
        self.chunks += 1
        if self.job.owner == self.worker.node:
            self.worker.chunk_here(piece)

    def progress(self, step: int, steps: int, note: str) -> None:
        self._tell(Progressed(job=self.job.id, step=step, steps=steps, note=note))

    def done(self, message: RunDone, payloads: list[bytes]) -> None:
        self._learn(message)
        done = Done(result=message.result, timings=message.timings, chunks=self.chunks, after=self.after)
        self.worker.end(self, done)

    def failed(self, message: RunFailed) -> None:
        error = ErrorBody(code=message.code, message=message.message)
        outcome = Failed(error=error, retry=message.retry, traceback=message.traceback, chunks=self.chunks)
        self.worker.end(self, outcome)

    def stopped(self) -> None:
        self.worker.end(self, Stopped(chunks=self.chunks, reason=self.given_back))

    def _tell(self, event: Any) -> None:
        if not self.job.reply:
            return
        data = encode(event, self._format)
        if len(data) <= MAX_MESSAGE_BYTES:
            self.worker.bus.post(self.job.reply, data)
        else:
            self.worker.end(self, _too_large("a piece of the answer", len(data), self.chunks))
            self.worker.pool.cancel(self.key)

    def _learn(self, message: RunDone) -> None:
        speed = self.worker.catalogue.speed(self.entry.capability, self.worker.model_file(self.entry, self.model))
        speed.learn_job(
            message,
            running=self.running_beside,
            promised_s=self.promised_s if self.was_warm else None,
            took_s=time.monotonic() - self.started if self.was_warm else None,
        )


class Worker:
    """This node's part as a contractor. `settle_here` is called instead of the bus when this node owns the job
    itself, `chunk_here` beside it for each piece sent. `elsewhere` says whether another node could do such work.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        bus: Bus,
        pool: RunnerPool,
        catalogue: Catalogue,
        power: PowerSection,
        zone: Zone,
        most: int | None = None,
    ) -> None:
        """`most`: jobs at once over all capabilities (a guest's cap)."""
        self.node = node
        self.most = most
        self.zone: Zone = zone
        self.bus = bus
        self.pool = pool
        self.catalogue = catalogue
        self.draining = False
        self.trace = Trace("", node, "")
        self.settle_here: Callable[[Settle], bool] = lambda settle: False
        self.chunk_here: Callable[[Chunk], None] = lambda chunk: None
        self.elsewhere: Callable[[str, str | None], bool] = lambda capability, model: True
        self.on_room: Callable[[str, str | None, int], None] = lambda capability, model, free: None
        self.attempts: dict[str, Attempt] = {}
        self.unsettled: set[str] = set()
        """Ended attempts whose owner has not taken the result yet."""
        self.idle = asyncio.Event()
        self.idle.set()
        self._watts = max(0.0, power.busy_w - power.idle_w)
        self._usd_per_s = power.usd_per_h / 3600 + energy_price(self._watts, power.usd_per_kwh)
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: dict[tuple[str, str | None], Ready] = {}
        self._full: set[tuple[str, str | None]] = set()

    # -- offers and bids ------------------------------------------------------------------------------------------

    def offers(self) -> tuple[Offer, ...]:
        """All standing offers: one per capability and model."""
        return tuple(
            self._offer(entry, model.name if model else None)
            for entry in self.catalogue.usable()
            for model in (entry.models or (None,))
        )

    def propose(self, cfp: CallForProposals) -> Proposal:
        """A bid, or a decline with its reason. Pure but for the bid's id and clock."""
        try:
            offer = self._offer_for(cfp.capability, cfp.model)
        except OutbidError as error:
            code = "no_model" if error.code == "unknown_model" else "no_capability"
            return Decline(node=self.node, job=cfp.job, code=code, reason=error.message)
        if refusal := self._refusal(offer):
            code, reason, temporary = refusal
            return Decline(node=self.node, job=cfp.job, code=code, reason=reason, temporary=temporary)
        return self.bid(cfp.job, offer, cfp.work)

    def bid(self, job: JobId, offer: Offer, work: dict[str, float]) -> Bid:
        return make_bid(self.node, job, offer, work, zone=self.zone, why=self._why(offer))

    def _offer_for(self, capability: str, model: str | None) -> Offer:
        entry, found = self.catalogue.find(capability, model)
        return self._offer(entry, found.name if found else None)

    def _offer(self, entry: Entry, model: str | None) -> Offer:
        file = self.model_file(entry, model)
        room = self.pool.room(entry.capability, file)
        speed = self.catalogue.speed(entry.capability, file)
        if room.ready is not None and self._heard.get((entry.capability.name, model)) is not room.ready:
            self._heard[(entry.capability.name, model)] = room.ready
            speed.learn_ready(room.ready)
        default = entry.default_model
        return Offer(
            capability=entry.capability.name,
            model=model,
            warm=room.warm,
            slots=room.slots,
            free=self._free(room.free),
            load_s=speed.load_s,
            fixed_s=speed.fixed_s,
            rates=dict(speed.rates),
            crowding=speed.crowding,
            spread=speed.spread,
            watts=self._watts,
            usd_per_s=self._usd_per_s,
            default=default is None or default.name == model,
            blocked=room.blocked,
            waiting_helps=room.temporary,
        )

    def _free(self, free: int) -> int:
        if self.draining:
            return 0
        return free if self.most is None else max(0, min(free, self.most - len(self.attempts)))

    def model_file(self, entry: Entry, model: str | None) -> Any:
        return next((file for file in entry.models if file.name == model), None)

    def _refusal(self, offer: Offer) -> tuple[str, str, bool] | None:
        if self.draining:
            return "draining", "this node takes no new work: it drains", False
        if offer.blocked:
            return "blocked", offer.blocked, offer.waiting_helps
        if offer.free <= 0:
            return "busy", f"all {offer.slots} slots are taken", True
        return None

    def _why(self, offer: Offer) -> str:
        entry = self.catalogue.entries[offer.capability]
        speed = self.catalogue.speed(entry.capability, self.model_file(entry, offer.model))
        return explain_offer(offer, speed.source)

    # -- attempts -------------------------------------------------------------------------------------------------

    def award(self, award: Award) -> AwardReply:
        """Take the award and start the attempt, or refuse it."""
        job = award.job
        self._supersede(award)
        try:
            entry, file = self.catalogue.find(job.capability, job.model)
            offer = self._offer(entry, file.name if file else None)
            if refusal := self._refusal(offer):
                code, reason, temporary = refusal
                return self._declined(offer, code, reason, temporary)
            attempt = Attempt(self, award, entry, offer)
            if attempt.key in self.attempts:  # the award came twice
                return Accepted(node=self.node, free=offer.free)
            self.attempts[attempt.key] = attempt
            self.idle.clear()
            self._note_start(attempt, offer)
            self.pool.run(entry.capability, file, dict(entry.settings), attempt.key, job.params, attempt)
        except OutbidError as error:
            self._forget(f"{job.id}/{award.attempt}")
            return Declined(node=self.node, code=error.code, reason=error.message)
        free = offer.free - 1
        if free <= 0:
            self._full.add((offer.capability, offer.model))
        return Accepted(node=self.node, free=free)

    def _note_start(self, attempt: Attempt, offer: Offer) -> None:
        if self.trace.on:
            self.trace.note(
                "started",
                job=attempt.job.id,
                attempt=attempt.number,
                owner=attempt.job.owner,
                capability=offer.capability,
                model=offer.model,
                running=attempt.running_beside + 1,
                slots=offer.slots,
            )

    def _supersede(self, award: Award) -> None:
        """An older attempt at the same job is void, whoever awarded it: its owner may be gone."""
        for older in list(self.attempts.values()):
            if older.job.id == award.job.id and older.number < award.attempt:
                self.pool.cancel(older.key)

    def cancel(self, message: CancelAttempt) -> None:
        key = f"{message.job}/{message.attempt}"
        if key in self.attempts:
            self.pool.cancel(key)

    def lease_check(self, check: LeaseCheck) -> LeaseState:
        """Say which of the owner's attempts are not running here; being asked shows that the owner lives."""
        unknown = []
        now = time.monotonic()
        for job, number in check.attempts:
            attempt = self.attempts.get(f"{job}/{number}")
            if attempt is not None:
                attempt.owner_heard = now
            elif f"{job}/{number}" not in self.unsettled:
                unknown.append((job, number))
        return LeaseState(node=self.node, unknown=tuple(unknown))

    def stop_orphans(self) -> None:
        """Stop the attempts of owners that fell silent: nobody would take their results. Those of durable jobs go on:
        their owner comes back for them.
        """
        now = time.monotonic()
        for attempt in list(self.attempts.values()):
            if attempt.job.durable or attempt.job.owner == self.node:
                continue
            if now - attempt.owner_heard > OWNER_SILENT_S:
                log.warning("owner of %s is silent, stopping it", attempt.key, extra={"action": "orphan_stopped"})
                attempt.owner_heard = now
                self.pool.cancel(attempt.key)

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """The runner is through with this attempt: free the slot, then tell the owner."""
        if not self._forget(attempt.key):
            return
        if self.trace.on:
            outcome_kind = outcome.__struct_config__.tag
            self.trace.note("stopped", job=attempt.job.id, attempt=attempt.number, outcome=outcome_kind)
        capability = attempt.entry.capability
        free = self.pool.room(capability, self.model_file(attempt.entry, attempt.model)).free
        settle = Settle(job=attempt.job.id, attempt=attempt.number, node=self.node, outcome=outcome, free=free)
        if attempt.job.owner == self.node:
            self.settle_here(settle)
        else:
            self.unsettled.add(attempt.key)  # now: a lease check may come before the task's first step
            self._spawn(self._settle(attempt.job, _fitting(settle)))
        self.room_changed(capability.name, attempt.model, free)

    def _forget(self, key: str) -> bool:
        known = self.attempts.pop(key, None) is not None
        if not self.attempts:
            self.idle.set()
        return known

    def room_changed(self, capability: str, model: str | None, free: int) -> None:
        """A slot became free; if there was none before, say so on the mesh."""
        if free > 0 and (capability, model) in self._full and not self.draining:
            self._full.discard((capability, model))
            self.on_room(capability, model, free)

    def recheck_full(self) -> None:
        """Runners changed by themselves (loaded, crashed, evicted): see whether what was full has room again."""
        for capability, model in list(self._full):
            entry = self.catalogue.entries[capability]
            free = self.pool.room(entry.capability, self.model_file(entry, model)).free
            self.room_changed(capability, model, free)

    # -- draining -------------------------------------------------------------------------------------------------

    def drain(self) -> tuple[list[JobId], list[JobId]]:
        """Take no new work, and give back the streams that another node can go on with. Returns the jobs that are
        finished here, and those given back.
        """
        self.draining = True
        finished_here: list[JobId] = []
        handed_over: list[JobId] = []
        for attempt in list(self.attempts.values()):
            if attempt.can_go_on_elsewhere and self.elsewhere(attempt.job.capability, attempt.model):
                attempt.given_back = "the node drains"
                self.pool.cancel(attempt.key)
                handed_over.append(attempt.job.id)
            else:
                finished_here.append(attempt.job.id)
        return finished_here, handed_over

    def undrain(self) -> None:
        """Take work again; what waits hears of it by this node's next presence."""
        self.draining = False
        self._full.clear()

    async def stop(self, timeout_s: float) -> None:
        """Wait for the last settlements to be delivered."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _settle(self, job: Job, settle: Settle) -> None:
        key = f"{settle.job}/{settle.attempt}"
        self.unsettled.add(key)
        try:
            if not await (self._settle_durable(job, settle) if job.durable else self._settle_soon(job, settle)):
                log.warning("owner of %s never took its result", settle.job, extra={"action": "settle_dropped"})
        finally:
            self.unsettled.discard(key)

    async def _settle_soon(self, job: Job, settle: Settle) -> bool:
        for _ in range(SETTLE_TRIES):
            if await self._offer_result(job.owner, settle, timeout_s=1.0):
                return True
            await asyncio.sleep(0.5)
        return False

    async def _settle_durable(self, job: Job, settle: Settle) -> bool:
        until, pause_s = time.monotonic() + KEEP_DURABLE_S, 0.25
        while time.monotonic() < until:
            if await self._offer_result(job.owner, settle, timeout_s=DURABLE_TRY_S):
                return True
            await asyncio.sleep(pause_s)
            pause_s = min(DURABLE_TRY_S, 1.5 * pause_s)
        return False

    async def _offer_result(self, owner: NodeId, settle: Settle, *, timeout_s: float) -> bool:
        """False: ask again, the owner does not answer or cannot take it now."""
        try:
            reply: Settled = await self.bus.call(subjects.node(owner, "settle"), settle, Settled, timeout_s=timeout_s)
        except (NoResponders, TimeoutError):
            return False
        except OutbidError as error:
            log.warning("settling %s: %s", settle.job, error, extra={"action": "settle_refused"})
            return error.status < 500
        if not reply.accepted:
            log.info("stale result of %s was refused", settle.job, extra={"action": "settle_stale"})
        return True

    def _declined(self, offer: Offer, code: str, reason: str, temporary: bool) -> Declined:
        return Declined(node=self.node, code=code, reason=reason, free=max(0, offer.free), temporary=temporary)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fitting(settle: Settle) -> Settle:
    size = len(encode(settle))
    if size <= MAX_MESSAGE_BYTES:
        return settle
    return msgspec.structs.replace(settle, outcome=_too_large("the result", size, settle.outcome.chunks))


def _too_large(what: str, size: int, chunks: int) -> Failed:
    message = f"{what} has {size / 2**20:.1f} MiB; a message may have {MAX_MESSAGE_BYTES // 2**20}"
    return Failed(error=PayloadTooLarge(message).body(), retry=False, chunks=chunks)


def make_bid(
    node: NodeId, job: JobId, offer: Offer, work: dict[str, float], *, zone: Zone, why: str, standing: bool = False
) -> Bid:
    """The numbers of a bid from an offer; the bidder and an owner that reads standing offers use the same formula."""
    numbers = estimate(offer, work)
    return Bid(
        bid_id=new_bid_id(),
        node=node,
        job=job,
        expires_ms=time.time_ns() // 1_000_000 + BID_TTL_MS,
        start_s=0.0 if offer.warm else offer.load_s,
        finish_s=numbers.finish_s,
        finish_p90_s=numbers.finish_p90_s,
        energy_j=numbers.energy_j,
        cost_usd=numbers.cost_usd,
        warm=offer.warm,
        zone=zone,
        model=offer.model,
        standing=standing,
        why=why,
    )


def explain_offer(offer: Offer, source: str) -> str:
    state = "warm" if offer.warm else f"cold, loads in {offer.load_s:.2g} s"
    rates = ", ".join(f"{1 / rate:.3g} {unit}/s" for unit, rate in offer.rates.items() if rate > 0)
    slots = f"{offer.free} of {offer.slots} slots free"
    return "; ".join(part for part in (state, rates, slots, f"from {source}") if part)
