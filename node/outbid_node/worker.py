"""The working side of a node: bids on calls for proposals, takes awards, runs attempts, settles with their owners."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from outbid_contracts import subjects
from outbid_contracts.capability import ModelFile
from outbid_contracts.codec import encode
from outbid_contracts.errors import OutbidError
from outbid_contracts.events import Chunk
from outbid_contracts.ids import JobId, NodeId
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
    LeaseCheck,
    LeaseState,
    Offer,
    Outcome,
    Proposal,
    SaveCheckpoint,
    Settle,
    Work,
)
from outbid_contracts.policy import Zone
from outbid_contracts.runner import Ready
from outbid_node.artifacts.inputs import Inputs, taken_out
from outbid_node.artifacts.stages import Delivering, Fetching
from outbid_node.attempt import Attempt
from outbid_node.bidding import bid_of, explain_offer, later_bid, too_long, with_held
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.choosing import left_s
from outbid_node.client import Bus
from outbid_node.estimate import less
from outbid_node.lag import Lag
from outbid_node.offering import Offering
from outbid_node.power.meter import Meter
from outbid_node.runners.pool import RunnerPool, Wanted, device_kind, key_of, wanted
from outbid_node.settling import Settler
from outbid_node.terms import USUAL, Terms
from outbid_node.trace import Trace

log = logging.getLogger(__name__)

OWNER_SILENT_S = 6.0
"""An owner that has not asked about its attempts for this long is dead or cut off: its attempts are stopped."""


class Worker:
    """This node's part as a contractor. `settle_here` and `save_here` are called instead of the bus when this node owns
    the job itself, `chunk_here` beside it for each piece sent. `elsewhere` says whether another node could do such
    work.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        bus: Bus,
        pool: RunnerPool,
        catalogue: Catalogue,
        meter: Meter,
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
        self.offering = Offering(catalogue, meter, lambda *told: self.on_ready(*told))
        self.draining = False
        self.meter = meter
        self.lag = Lag()
        self.terms: Callable[[bool], Terms] = lambda own: USUAL
        """Of courtesy; `own` for what somebody at this very machine waits for."""
        self.trace = Trace("", node, "")
        self.settle_here: Callable[[Settle], bool] = lambda settle: False
        self.save_here: Callable[[SaveCheckpoint], None] = lambda save: None
        self.chunk_here: Callable[[Chunk], None] = lambda chunk: None
        self.elsewhere: Callable[[str, str | None], bool] = lambda capability, model: True
        self.on_room: Callable[[str, str | None, int], None] = lambda capability, model, free: None
        self.on_ended: Callable[[Attempt, Outcome], None] = lambda attempt, outcome: None
        self.on_work: Callable[[], None] = lambda: None
        """A job came, or may come: whatever else the machine does gives way."""
        self.on_bid: Callable[[CallForProposals, Proposal], None] = lambda cfp, proposal: None
        self.on_ready: Callable[[str, str | None, Ready], None] = lambda capability, model, ready: None
        self.tells_progress = False
        """Somebody looks on who is not the caller."""
        self.attempts: dict[str, Attempt] = {}
        self.settler = Settler(bus)
        self.fetching = Fetching()
        self.delivering = Delivering()
        self.idle = asyncio.Event()
        self.idle.set()
        self._full: set[tuple[str, str | None]] = set()
        self._wants: dict[NodeId, tuple[tuple[str, str | None], ...]] = {}

    # -- offers and bids ------------------------------------------------------------------------------------------

    def offers(self) -> tuple[Offer, ...]:
        """All standing offers: one per capability and model."""
        return tuple(
            self._as_told(entry, self._offer(entry, model))
            for entry in self.catalogue.usable()
            for model in (entry.models or (None,))
        )

    def _as_told(self, entry: Entry, offer: Offer) -> Offer:
        """With what others want to know of it, and a bid has no use for."""
        frees_s = self._frees_s(entry, offer.model)
        pinned = self.pool.is_pinned((entry.capability.runner, offer.model))
        return msgspec.structs.replace(offer, frees_s=frees_s, pinned=pinned) if frees_s or pinned else offer

    def _frees_s(self, entry: Entry, model: str | None) -> tuple[float, ...]:
        """When its taken slots are expected to be free, the soonest first: capabilities may share a runner."""
        runner, now = entry.capability.runner, time.monotonic()
        return tuple(
            sorted(
                left_s(attempt.promised_s, attempt.promised_p90_s, now - attempt.started)
                for attempt in self.attempts.values()
                if attempt.model == model and attempt.entry.capability.runner == runner
            )
        )

    def propose(self, cfp: CallForProposals, zone: Zone | None = None) -> Proposal:
        """A bid, for a slot that is free or the first that will be, or a decline with its reason. Pure but for the
        bid's id and clock. `zone`: where this node is for whoever asks, if that is not what others are told.
        """
        zone = zone or self.zone
        try:
            own = self.is_own(cfp.owner, durable=cfp.durable)
            entry, file = self.catalogue.find(cfp.capability, cfp.model)
            offer = self._offer(entry, file, own=own)
            held = self._held(entry, file, cfp.prefix) if cfp.prefix else {}
            work = less(cfp.work, held)
        except OutbidError as error:
            code = "no_model" if error.code == "unknown_model" else "no_capability"
            return Decline(node=self.node, job=cfp.job, code=code, reason=error.message)
        if refusal := self._refusal(offer):
            self.on_work()
            code, reason, temporary = refusal
            frees_s = self._frees_s(entry, offer.model) if code == "busy" and not too_long(offer, work) else ()
            if frees_s:
                bid = later_bid(self.node, cfp.job, offer, work, start_s=frees_s[0], zone=zone)
                return with_held(bid, held, cfp.work) if held else bid
            return Decline(node=self.node, job=cfp.job, code=code, reason=reason, temporary=temporary)
        if reason := too_long(offer, work):
            return Decline(node=self.node, job=cfp.job, code="blocked", reason=reason, temporary=True)
        bid = self.bid(cfp.job, offer, work, zone)
        return with_held(bid, held, cfp.work) if held else bid

    def answer(self, cfp: CallForProposals) -> Proposal:
        """As `propose`, for another owner."""
        if not cfp.dry:
            self.on_work()
        proposal = self.propose(cfp)
        self.on_bid(cfp, proposal)
        return proposal

    def bid(self, job: JobId, offer: Offer, work: Work, zone: Zone) -> Bid:
        numbers = self.offering.estimate(offer, work)
        return bid_of(self.node, job, offer, numbers, zone=zone, why=explain_offer(offer))

    def _held(self, entry: Entry, file: ModelFile | None, prefix: bytes) -> Work:
        """What of such a job need not be done here, because its runner holds it from an earlier one."""
        cache = self.pool.room(entry.capability, file).cache
        return cache.held(prefix) if cache is not None else {}

    def open_offer(self, capability: str, model: str | None, *, own: bool) -> Offer | None:
        """What it would bid from now; None if it would decline, or bid for a slot that is free later."""
        try:
            entry, file = self.catalogue.find(capability, model)
            offer = self._offer(entry, file, own=own)
        except OutbidError:
            return None
        return None if self._refusal(offer) else offer

    def is_own(self, owner: NodeId, *, durable: bool) -> bool:
        """Whether somebody at this machine waits for it; a durable job may be anybody's."""
        return owner == self.node and not durable

    def own_room(self, capability: str, model: str | None) -> int:
        """Free slots for what somebody at this machine waits for, while they are not for the others."""
        if not self.terms(False).refuse or self.terms(True).refuse:
            return 0
        offer = self.open_offer(capability, model, own=True)
        return offer.free if offer is not None else 0

    def _offer(self, entry: Entry, file: ModelFile | None, *, own: bool = False) -> Offer:
        room = self.pool.room(entry.capability, file)
        free = room.free - self.fetching.slots(entry.capability.runner, file.name if file else None)
        return self.offering.offer(entry, file, room, self._free(free), self.terms(own))

    def device_of(self, entry: Entry, model: str | None) -> str:
        """The kind of device that its runner runs on now."""
        return device_kind(self.pool.room(entry.capability, self.model_file(entry, model)).ready)

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

    # -- attempts -------------------------------------------------------------------------------------------------

    def award(self, award: Award) -> AwardReply:
        """Take the award and start the attempt, or refuse it."""
        job = award.job
        self.on_work()
        self._supersede(award)
        try:
            entry, file = self.catalogue.find(job.capability, job.model)
            own = self.is_own(job.owner, durable=job.durable)
            offer = self._offer(entry, file, own=own)
            if refusal := self._refusal(offer):
                code, reason, temporary = refusal
                return self._declined(offer, code, reason, temporary)
            work = less(job.work, self._held(entry, file, job.prefix)) if job.prefix else job.work
            if reason := too_long(offer, work):
                return self._declined(offer, "blocked", reason, True)
            attempt = Attempt(self, award, entry, file, offer, work)
            if attempt.key in self.attempts:  # the award came twice
                return Accepted(node=self.node, free=offer.free)
            self.attempts[attempt.key] = attempt
            self.idle.clear()
            self.meter.begin(attempt.key, offer.device, key_of(entry.capability, file))
            self._note_start(attempt, offer)
            self._begin(attempt)
        except OutbidError as error:
            self._forget(f"{job.id}/{award.attempt}")
            self.meter.end(f"{job.id}/{award.attempt}")
            return Declined(node=self.node, code=error.code, reason=error.message)
        free = offer.free - 1
        if free <= 0:
            self._full.add((offer.capability, offer.model))
        return Accepted(node=self.node, free=free)

    def _begin(self, attempt: Attempt) -> None:
        """Give it to its runner, once its inputs are here. Raises Refused, InvalidRequest."""
        names = attempt.entry.capability.inputs
        if not names:
            self._run(attempt, attempt.job.params, attempt.files)
            return
        inputs = taken_out(attempt.job.params, names)
        if inputs.wanted:
            run = partial(self._run_fetched, attempt, inputs)
            self.fetching.begin(attempt, inputs.wanted, run)
        else:
            self._run(attempt, inputs.params, inputs.files | attempt.files)

    def _run_fetched(self, attempt: Attempt, inputs: Inputs, fetched: dict[str, bytes]) -> None:
        self._run(attempt, inputs.params, inputs.files | fetched | attempt.files)

    def _run(self, attempt: Attempt, params: dict[str, Any], files: dict[str, bytes]) -> None:
        entry, heard = attempt.entry, bool(attempt.job.reply)
        self.pool.run(entry.capability, attempt.file, entry.settings, attempt.key, params, attempt, files, heard=heard)

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
        if award.attempt <= 1:
            return
        for older in list(self.attempts.values()):
            if older.job.id == award.job.id and older.number < award.attempt:
                self._stop(older)
        self.delivering.supersede(award.job.id, award.attempt)

    def cancel(self, message: CancelAttempt) -> None:
        key = f"{message.job}/{message.attempt}"
        if key in self.attempts:
            self._stop(self.attempts[key])
        else:
            self.delivering.cancel(key)

    def _stop(self, attempt: Attempt, *, save: bool = False) -> None:
        if not self.fetching.cancel(attempt.key):
            self.pool.cancel(attempt.key, save=save)

    def lease_check(self, check: LeaseCheck) -> LeaseState:
        """Say which of the owner's attempts are not running here; being asked shows that the owner lives."""
        unknown = []
        now = time.monotonic()
        for job, number in check.attempts:
            attempt = self.attempts.get(f"{job}/{number}")
            if attempt is not None:
                attempt.owner_heard = now
            elif f"{job}/{number}" not in self.settler.unsettled:
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
                self._stop(attempt)

    def end(self, attempt: Attempt, outcome: Outcome, payloads: Sequence[bytes] = ()) -> None:
        """The runner is through with this attempt: its slot is free; the owner is told once its files are on disk."""
        if attempt.key not in self.attempts:
            return
        if attempt.spent is None:
            attempt.spent = self.meter.end(attempt.key)
        if isinstance(outcome, Done) and attempt.entry.capability.artifacts is not None:
            self.settler.unsettled.add(attempt.key)
            self.delivering.begin(attempt, outcome, payloads, self._settle)
        self._forget(attempt.key)
        self.on_ended(attempt, outcome)
        if self.trace.on:
            outcome_kind = outcome.__struct_config__.tag
            self.trace.note("stopped", job=attempt.job.id, attempt=attempt.number, outcome=outcome_kind)
        if attempt.key not in self.settler.unsettled:
            self._settle(attempt, outcome)
        if (attempt.entry.capability.name, attempt.model) in self._full:
            self.room_changed(attempt.entry.capability.name, attempt.model, self._room_of(attempt))

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        settle = Settle(
            job=attempt.job.id,
            attempt=attempt.number,
            node=self.node,
            outcome=outcome,
            free=self._room_of(attempt) if attempt.job.owner != self.node else 0,
            energy_j=attempt.spent.energy_j if attempt.spent else None,
            cost_usd=attempt.spent.cost_usd if attempt.spent else None,
        )
        if attempt.job.owner == self.node:
            self.settler.unsettled.discard(attempt.key)
            self.settle_here(settle)
        else:
            self.settler.begin(attempt.job, settle)
        self._look_idle()

    def _room_of(self, attempt: Attempt) -> int:
        """Free slots for more of its kind."""
        capability = attempt.entry.capability
        room = self.pool.room(capability, attempt.file)
        return room.free - self.fetching.slots(capability.runner, attempt.model)

    def save(self, owner: NodeId, save: SaveCheckpoint) -> None:
        """Before the settlement of its attempt, and on the same way, so that it comes first."""
        if owner == self.node:
            self.save_here(save)
        else:
            self.bus.post(subjects.node(owner, "checkpoint"), encode(save))

    def _forget(self, key: str) -> None:
        self.attempts.pop(key, None)
        self._look_idle()

    def _look_idle(self) -> None:
        if not self.attempts and not self.delivering:
            self.idle.set()

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

    def heed_wants(self, node: NodeId, wants: tuple[tuple[str, str | None], ...]) -> None:
        """For what the jobs of that owner wait now; empty if it is gone."""
        if self._wants.get(node, ()) == wants:
            return
        self._wants[node] = wants
        if not wants:
            del self._wants[node]
        else:
            self.on_work()
        wanted = (self._wanted(*want) for want in sorted(set().union(*self._wants.values()), key=str))
        self.pool.want([want for want in wanted if want is not None])

    def _wanted(self, capability: str, model: str | None) -> Wanted | None:
        try:
            entry, file = self.catalogue.find(capability, model)
        except OutbidError:
            return None
        return wanted(entry.capability, file, self.catalogue.speed(entry.capability, file).load_s)

    # -- draining -------------------------------------------------------------------------------------------------

    def drain(self) -> tuple[list[JobId], list[JobId]]:
        """Take no new work, and give back the jobs that another node can go on with. Returns the jobs that are
        finished here, and those given back.
        """
        self.draining = True
        finished_here: list[JobId] = []
        handed_over: list[JobId] = []
        for attempt in list(self.attempts.values()):
            if attempt.can_go_on_elsewhere and self.elsewhere(attempt.job.capability, attempt.model):
                self._give_back(attempt, "the node drains")
                handed_over.append(attempt.job.id)
            else:
                finished_here.append(attempt.job.id)
        return finished_here, handed_over

    def withdraw(self, why: str, beyond_s: float | None = None) -> tuple[list[JobId], list[JobId]]:
        """Give back, for its person's sake, what another node can go on with; `beyond_s`: only what is expected to take
        longer yet. What somebody at this machine waits for stays. Returns the jobs that go on here, and those given
        back.
        """
        stay: list[JobId] = []
        handed_over: list[JobId] = []
        for attempt in list(self.attempts.values()):
            if attempt.given_back:
                continue
            own = self.is_own(attempt.job.owner, durable=attempt.job.durable)
            in_time = beyond_s is not None and attempt.left_s <= beyond_s
            movable = attempt.can_go_on_elsewhere and self.elsewhere(attempt.job.capability, attempt.model)
            if own or in_time or not movable:
                stay.append(attempt.job.id)
            else:
                self._give_back(attempt, why)
                handed_over.append(attempt.job.id)
        return stay, handed_over

    def leave(self) -> bool:
        """The node stops and waits no longer: jobs that outlive it give a last checkpoint. False if there are none."""
        outliving = [
            attempt
            for attempt in self.attempts.values()
            if attempt.entry.capability.resume == "checkpoint"
            and (attempt.job.durable or attempt.job.owner != self.node)
        ]
        for attempt in outliving:
            self._give_back(attempt, "the node stopped")
        return bool(outliving)

    def _give_back(self, attempt: Attempt, why: str) -> None:
        attempt.given_back = why
        self._stop(attempt, save=True)

    def undrain(self) -> None:
        """Take work again; what waits hears of it by this node's next presence."""
        self.draining = False
        self._full.clear()

    async def stop(self, timeout_s: float) -> None:
        """Wait for the last settlements to be delivered."""
        await self.delivering.stop(timeout_s)
        await self.settler.stop(timeout_s)

    def _declined(self, offer: Offer, code: str, reason: str, temporary: bool) -> Declined:
        return Declined(node=self.node, code=code, reason=reason, free=max(0, offer.free), temporary=temporary)
