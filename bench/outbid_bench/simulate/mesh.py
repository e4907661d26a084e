"""Outbid on the simulated clock: the daemon's own owner, auction, choice, ranking, waiting room and registry.

Simulated are the machines (`contractor`), the network (messages take half a millisecond to two and a half), and the
callers. A job that loses its machine goes on where it stopped: a chat from the tokens that its caller has, a picture
from its last checkpoint, as in the daemon.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

from nats.aio.msg import Msg

from outbid_bench.simulate.clock import Meter
from outbid_bench.simulate.contractor import WRONG, Contractor
from outbid_bench.simulate.fleets import Absence
from outbid_bench.simulate.hosts import Host, Run
from outbid_bench.simulate.traces import Task
from outbid_bench.simulate.world import World
from outbid_contracts.codec import decode, encode
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.messages import Award, AwardReply, CallForProposals, Job, Settle
from outbid_contracts.policy import Goal, Policy
from outbid_node.auction import Auctioneer
from outbid_node.client import Bus
from outbid_node.estimating.learner import Speed
from outbid_node.owned import OwnedJob
from outbid_node.owner import Owner
from outbid_node.registry import BEAT_S, Registry, beat_s
from outbid_node.waiting import WaitingRoom
from outbid_node.worker import Worker

WAY_S = (0.0005, 0.0025)
"""One way between two machines, from and to (evenly). Over loopback a third of a millisecond there and back was
measured.
"""

MAX_ATTEMPTS = 100
"""So that a machine that comes and goes does not end a job; the daemon's usual 3 is for jobs that kill runners."""


class SimulatedBus(Bus):
    """What one node sends arrives at the other's contractor, and its reply in the inbox."""

    def __init__(self, me: NodeId, mesh: SimulatedMesh) -> None:
        super().__init__(me)
        self._mesh = mesh
        self._me = me

    def post(self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, Any] | None = None) -> None:
        words = subject.split(".")
        if words[:2] == ["mesh", "node"]:
            self._mesh.carry(functools.partial(self._arrive, NodeId(words[2]), words[3], data, reply))

    def _arrive(self, node: NodeId, verb: str, data: bytes, reply: str) -> None:
        contractor = self._mesh.contractors[node]
        if not contractor.host.up:
            return  # a request that nobody answers; the sender's patience ends
        if verb == "cfp":
            answer: Any = contractor.propose(decode(data, CallForProposals))
        elif verb == "award":
            answer = contractor.award(decode(data, Award))
            self._mesh.awarded(answer)
        else:
            return
        self._mesh.carry(functools.partial(self._answer, reply, encode(answer)))

    def _answer(self, reply: str, data: bytes) -> None:
        waiting = self._waiting.get(reply[len(self._inbox) + 1 :])
        if waiting is not None:
            msg = Msg(_client=cast(Any, None), subject=reply, data=data)
            self._mesh.meter.call(functools.partial(waiting, msg))


class SimulatedOwner(Owner):
    """A caller here is patient: a job that misses its deadline is done all the same, and counted as late, like those of
    the other schedulers.
    """

    async def _ending(self, owned: OwnedJob) -> None:
        owned.finished = await self._attempts(owned)
        owned.state, owned.sealing = "done", True


@dataclasses.dataclass(eq=False, slots=True)
class _Desk:
    """An owner's part of a node."""

    contractor: Contractor
    registry: Registry
    owner: Owner


class SimulatedMesh:
    """The scheduler that the world sees. `goal` is every job's policy, `wrong` how wrong first guesses are."""

    def __init__(self, seed: int, goal: Goal = "fastest", wrong: float = WRONG) -> None:
        self.name = f"Outbid ({goal})"
        self.goal: Goal = goal
        self.wrong = wrong
        self.rng = random.Random(f"mesh/{seed}")
        self.contractors: dict[NodeId, Contractor] = {}
        self.desks: list[_Desk] = []
        self._tasks: dict[str, Task] = {}
        self._fractions: dict[str, float] = {}
        self._lengths: dict[str, Speed] = {}
        self.meter = Meter()
        """What the owners do for their jobs: auctions, choices, awards, settlements."""
        self.beats = Meter()
        """What they do with heartbeats."""
        self.beats_heard = 0
        self._jobs: set[asyncio.Task[None]] = set()
        self._ended = False

    # -- what the world tells -------------------------------------------------------------------------------------

    def begin(self, world: World) -> None:
        self.world = world
        world.loop.set_task_factory(self.meter.task)
        random.seed(f"daemon/{world.seed}")  # the daemon's own draws are from the common generator
        for host in world.hosts:
            contractor = Contractor(
                host,
                self.rng,
                start=world.start,
                tasks=self._tasks,
                fractions=self._fractions,
                lengths=self._lengths,
                settle=self._settle,
                room=self._room,
                wrong=self.wrong,
            )
            self.contractors[contractor.node] = contractor
        for contractor in self.contractors.values():
            if contractor.host.plan.owner:
                self.desks.append(self._desk(contractor))
        for contractor in self.contractors.values():
            contractor.beat_s = beat_s(len(self.contractors))
            self._tell(contractor, contractor.presence(), at_once=True)
            world.loop.call_later(self.rng.uniform(0.0, contractor.beat_s), self._beat, contractor)
        world.loop.call_later(BEAT_S, self._sweep)

    def _desk(self, contractor: Contractor) -> _Desk:
        node = contractor.node
        bus, registry = SimulatedBus(node, self), Registry(node)
        auctioneer = Auctioneer(me=node, bus=bus, registry=registry, worker=cast(Worker, contractor))
        owner = SimulatedOwner(
            me=node,
            bus=bus,
            registry=registry,
            auctioneer=auctioneer,
            waiting=WaitingRoom(registry, limit=1_000_000),
            max_attempts=MAX_ATTEMPTS,
            award_here=functools.partial(self._award_here, contractor),
            cancel_here=lambda message: None,
        )
        return _Desk(contractor, registry, owner)

    def arrive(self, task: Task) -> None:
        self._tasks[task.id] = task
        desk = self.desks[task.number % len(self.desks)]
        job = Job(
            id=JobId(task.id),
            owner=desk.contractor.node,
            capability=task.capability,
            params={},
            work=task.asked,
            policy=Policy(goal=self.goal, deadline_s=task.deadline_s),
            created_ms=int(task.arrives_s * 1000),
            submitter=task.submitter,
        )
        driving = self.world.loop.create_task(self._drive(desk, job))
        self._jobs.add(driving)
        driving.add_done_callback(self._driven)

    async def _drive(self, desk: _Desk, job: Job) -> None:
        owned = desk.owner.accept(job, lambda event: None)
        assert owned.task is not None
        await owned.task

    def _driven(self, driving: asyncio.Task[None]) -> None:
        self._jobs.discard(driving)
        if not driving.cancelled() and (error := driving.exception()) is not None:
            raise error

    def left(self, host: Host, lost: Sequence[Run], absence: Absence) -> None:
        contractor = self._of(host)
        if not absence.abrupt:
            self._tell(contractor, contractor.presence("leaving"))
        contractor.gone(list(lost), abrupt=absence.abrupt)

    def back(self, host: Host) -> None:
        self._tell(self._of(host), self._of(host).presence())

    def quiet(self, host: Host) -> None:
        if host.up:
            self._tell(self._of(host), self._of(host).presence())

    def end(self) -> None:
        self._ended = True
        self.world.spent_s = self.meter.spent_s

    def _of(self, host: Host) -> Contractor:
        return self.contractors[NodeId(f"n{host.name}")]

    # -- the network ----------------------------------------------------------------------------------------------

    def carry(self, deliver: Callable[[], None]) -> None:
        self.world.loop.call_later(self.rng.uniform(*WAY_S), deliver)

    def _tell(self, contractor: Contractor, presence: Any, *, at_once: bool = False) -> None:
        """A heartbeat, to all owners."""
        for desk in self.desks:
            deliver = functools.partial(self.beats.call, functools.partial(desk.registry.receive, presence))
            deliver() if at_once or desk.contractor is contractor else self.carry(deliver)
            self.beats_heard += 1

    def _beat(self, contractor: Contractor) -> None:
        if self._ended:
            return
        self.world.loop.call_later(contractor.beat_s, self._beat, contractor)
        if contractor.host.up:
            self._tell(contractor, contractor.presence())

    def _sweep(self) -> None:
        if self._ended:
            return
        self.world.loop.call_later(BEAT_S, self._sweep)
        for desk in self.desks:
            self.beats.call(desk.registry.sweep)

    # -- what contractors say -------------------------------------------------------------------------------------

    def _award_here(self, contractor: Contractor, award: Award) -> AwardReply:
        reply = self.meter.aside(functools.partial(contractor.award, award))
        self.awarded(reply)
        return reply

    def awarded(self, reply: AwardReply) -> None:
        self.world.refusals += type(reply).__name__ == "Declined"

    def _settle(self, contractor: Contractor, award: Award, run: Run, settle: Settle) -> None:
        desk = next(desk for desk in self.desks if desk.contractor.node == award.job.owner)
        deliver = functools.partial(self._settled, desk, contractor, run, settle)
        deliver() if desk.contractor is contractor else self.carry(deliver)

    def _settled(self, desk: _Desk, contractor: Contractor, run: Run, settle: Settle) -> None:
        if self.meter.call(functools.partial(desk.owner.settle, settle)) and type(settle.outcome).__name__ == "Done":
            self.world.done(run, contractor.host)

    def _room(self, contractor: Contractor, capability: str, free: int) -> None:
        for desk in self.desks:
            note = functools.partial(desk.registry.note_free, contractor.node, capability, None, free)
            deliver = functools.partial(self.meter.call, note)
            deliver() if desk.contractor is contractor else self.carry(deliver)
