"""The working side of a simulated node: offers, bids and awards as the daemon's worker makes them, over a simulated
machine. What it believes of its own speed it learns from its runs, with the daemon's own learner.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from outbid_bench.simulate.hosts import FLOOR, JOULES_PER_WH, Host, Run
from outbid_bench.simulate.machines import USD_PER_KWH, Engine
from outbid_bench.simulate.traces import Task
from outbid_contracts.capability import Prior
from outbid_contracts.errors import Draining
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import (
    Accepted,
    Award,
    AwardReply,
    CallForProposals,
    Decline,
    Declined,
    Done,
    Offer,
    Outcome,
    Presence,
    Proposal,
    Settle,
    Stopped,
)
from outbid_contracts.policy import Zone
from outbid_node.bidding import explain_offer, later_bid, make_bid, too_long
from outbid_node.choosing import left_s
from outbid_node.estimate import energy_price, estimate
from outbid_node.estimating import run as learnt
from outbid_node.estimating.learner import Learner, Speed, WarmUp
from outbid_node.lag import Lag
from outbid_node.registry import BEAT_S

WRONG = math.log(2.0)
"""A capability's first guess is wrong by up to a factor of two, either way (the logarithm of it)."""

AT_MOST = ("new_tokens",)

FITS_RARER = 16.0
"""The daemon fits its beliefs anew a quarter of a second after a run; here four seconds after it, because the fits of
all machines would take most of the time.
"""

MARGIN = 1.2
"""A battery must last for a job's p90 and a fifth."""


@dataclass(eq=False, slots=True)
class Lease:
    """An attempt that runs here, and what was promised for it."""

    award: Award
    run: Run
    began_s: float
    p50_s: float
    p90_s: float
    warm: bool


class Contractor:
    """`settle` and `room` go out by the mesh. `fractions` of jobs are known to all: tokens that a caller has, steps of
    which the owner has the checkpoint. `lengths`: who knew last how long answers usually are.
    """

    def __init__(
        self,
        host: Host,
        rng: random.Random,
        *,
        start: Callable[[Host, Task, Callable[[Run], None], float], Run],
        tasks: dict[str, Task],
        fractions: dict[str, float],
        lengths: dict[str, Speed],
        settle: Callable[[Contractor, Award, Run, Settle], None],
        room: Callable[[Contractor, str, int], None],
        wrong: float = WRONG,
    ) -> None:
        self.host = host
        self.node = NodeId(f"n{host.name}")
        self.boot = 0
        self.seq = 0
        self.beat_s = BEAT_S
        self.lag = Lag()
        self.leases: dict[str, Lease] = {}
        self._start = start
        self._tasks = tasks
        self._fractions = fractions
        self._lengths = lengths
        self._settle = settle
        self._room = room
        self._full: set[str] = set()
        self._learners = {
            capability: Learner(_guess(engine, rng, wrong), _at_most(engine), lambda: host.loop.time() / FITS_RARER)
            for capability, engine in host.plan.machine.engines.items()
        }

    # -- offers and bids ------------------------------------------------------------------------------------------

    def presence(self, state: str = "up") -> Presence:
        self.seq += 1
        return Presence(
            node=self.node,
            name=self.host.name,
            version="simulated",
            boot=str(self.boot),
            seq=self.seq,
            state=state,  # type: ignore[arg-type]
            beat_s=self.beat_s,
            zone=self.host.plan.machine.zone,
            offers=tuple(self.offer(capability) for capability in self._learners) if state == "up" else (),
        )

    def offer(self, capability: str) -> Offer:
        host, speed = self.host, self._learners[capability].speed()
        machine, engine = host.plan.machine, host.engine(capability)
        assert engine is not None
        most_s = self._battery_s()
        if speed.typical:
            self._lengths[capability] = speed
        lengths = self._lengths.get(capability, speed)
        return Offer(
            capability=capability,
            model=None,
            default=True,
            warm=host.warm(capability),
            slots=engine.slots,
            free=engine.slots - host.count(capability),
            load_s=speed.load_s,
            fixed_s=speed.fixed_s,
            rates=dict(speed.rates),
            crowding=speed.crowding,
            spread=speed.spread,
            typical=speed.typical or lengths.typical,
            typical_from=speed.typical_from if speed.typical else lengths.typical_from,
            watts=machine.extra_w,
            usd_per_s=machine.usd_per_h / 3600 + energy_price(machine.extra_w, USD_PER_KWH),
            frees_s=self._frees(capability),
            blocked="quiet hours" if host.quiet else "",
            most_s=most_s,
            most_why="on battery" if most_s is not None else "",
            rests_on=speed.source,
        )

    def open_offer(self, capability: str, model: str | None, *, own: bool) -> Offer | None:
        """As `Worker.open_offer`."""
        if capability not in self._learners:
            return None
        offer = self.offer(capability)
        return None if offer.blocked or offer.free <= 0 else offer

    def propose(self, cfp: CallForProposals, zone: Zone | None = None) -> Proposal:
        """As `Worker.propose`."""
        if cfp.capability not in self._learners:
            return self._decline(cfp, "no_capability", "it cannot", False)
        offer = self.offer(cfp.capability)
        if offer.blocked:
            return self._decline(cfp, "blocked", offer.blocked, True)
        if reason := too_long(offer, cfp.work):
            return self._decline(cfp, "blocked", reason, True)
        zone = zone or self.host.plan.machine.zone
        if offer.free > 0:
            return make_bid(self.node, cfp.job, offer, cfp.work, zone=zone, why=explain_offer(offer))
        if offer.frees_s:
            return later_bid(self.node, cfp.job, offer, cfp.work, start_s=offer.frees_s[0], zone=zone)
        return self._decline(cfp, "busy", f"all {offer.slots} slots are taken", True)

    def _decline(self, cfp: CallForProposals, code: str, reason: str, temporary: bool) -> Decline:
        return Decline(node=self.node, job=cfp.job, code=code, reason=reason, temporary=temporary)

    def _frees(self, capability: str) -> tuple[float, ...]:
        now_s = time.monotonic()
        leases = (lease for lease in self.leases.values() if lease.award.job.capability == capability)
        return tuple(sorted(left_s(lease.p50_s, lease.p90_s, now_s - lease.began_s) for lease in leases))

    def _battery_s(self) -> float | None:
        """How long a job may be so that the charge stays above the floor. What runs here already drains it alike."""
        host, machine = self.host, self.host.plan.machine
        if not (host.on_battery and machine.battery_wh):
            return None
        host.advance()
        return max(0.0, (host.charge - FLOOR) * machine.battery_wh * JOULES_PER_WH / machine.busy_w / MARGIN)

    # -- attempts -------------------------------------------------------------------------------------------------

    def award(self, award: Award) -> AwardReply:
        """As `Worker.award`."""
        job = award.job
        offer = self.offer(job.capability)
        if reason := offer.blocked or too_long(offer, job.work):
            return Declined(node=self.node, code="blocked", reason=reason, free=max(0, offer.free), temporary=True)
        if offer.free <= 0:
            return Declined(node=self.node, code="busy", reason="all slots are taken", temporary=True)
        promise = estimate(offer, job.work)
        fraction = self._fractions.get(job.id, 0.0)
        run = self._start(self.host, self._tasks[job.id], self._ended, fraction)
        self.leases[job.id] = Lease(award, run, time.monotonic(), promise.finish_s, promise.finish_p90_s, offer.warm)
        if offer.free == 1:
            self._full.add(job.capability)
        return Accepted(node=self.node, free=offer.free - 1)

    def _ended(self, run: Run) -> None:
        lease = self.leases.pop(run.task.id)
        self._learn(lease, run)
        self._end(lease, Done(result={}))
        capability = run.task.capability
        if capability in self._full and (free := self.host.free(capability)):
            self._full.discard(capability)
            self._room(self, capability, free)

    def _end(self, lease: Lease, outcome: Outcome) -> None:
        job = lease.award.job
        settle = Settle(
            job=job.id,
            attempt=lease.award.attempt,
            node=self.node,
            outcome=outcome,
            free=self.host.free(job.capability),
            energy_j=lease.run.energy_j,
        )
        self._settle(self, lease.award, lease.run, settle)

    def _learn(self, lease: Lease, run: Run) -> None:
        """As `Attempt` does: from the whole time, and from what the runner measured of each unit."""
        task, took_s = run.task, time.monotonic() - lease.began_s
        learner, engine = self._learners[task.capability], run.engine
        if lease.run.cold:
            load_s = engine.load_s
            learner.warmed_up(WarmUp(load_s, {}))
        part = task.id in self._fractions
        alone_s = engine.alone_s(task.true)
        share = max(0.0, took_s - (engine.load_s if lease.run.cold else 0.0)) / alone_s
        measured = {unit: (count, share * count * engine.rates[unit]) for unit, count in task.true.items()}
        learner.note(
            learnt.Run(
                work=lease.award.job.work,
                measured={} if part else measured,
                took_s=took_s,
                warm=lease.warm,
                beside=(run.beside + self.host.count(task.capability)) / 2,
                part=part,
                at_s=time.time(),
            )
        )

    def gone(self, lost: list[Run], *, abrupt: bool) -> None:
        """The machine leaves. What ran here is given back; nobody hears of it if it was cut off."""
        self.boot += 1
        self._full.clear()
        leases, self.leases = self.leases, {}
        for run in lost:
            self._fractions[run.task.id] = self._fractions.get(run.task.id, 0.0) * (1 - run.fraction) + run.fraction
            if not abrupt:
                self._end(leases[run.task.id], Stopped(reason=Draining("the machine goes to sleep").message))

    def cancel(self, job: str) -> None:
        raise AssertionError(f"nobody cancels {job}")


def _at_most(engine: Engine) -> tuple[str, ...]:
    return tuple(unit for unit in AT_MOST if unit in engine.rates)


def _guess(engine: Engine, rng: random.Random, wrong: float) -> Prior:
    def guess(number: float) -> float:
        return number * math.exp(rng.uniform(-wrong, wrong))

    factor = guess(1.0)
    return Prior(
        load_s=guess(engine.load_s),
        fixed_s=guess(engine.fixed_s),
        crowding=guess(engine.crowding),
        rates={unit: rate * factor for unit, rate in engine.rates.items()},
    )
