"""Where durable jobs are handed in and asked for: `mesh.jobs.submit|result|watch|retry`, and the same between nodes.

Any node answers a face. What belongs to another node is passed on to its owner.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.durable import (
    KEEP_S,
    MAX_WAIT_S,
    DurableJob,
    PriorityRequest,
    ResultRequest,
    RetryRequest,
    Submission,
    SubmitReply,
    SubmitRequest,
    Submitted,
    Terms,
    WatchRequest,
)
from outbid_contracts.errors import (
    DuplicateJob,
    InvalidRequest,
    NodeUnreachable,
    NotDone,
    OutbidError,
    StorageFailed,
    UnknownCapability,
    UnknownJob,
    from_body,
)
from outbid_contracts.events import Finished, JobEvent
from outbid_contracts.ids import JobId, NodeId, new_job_id
from outbid_contracts.messages import Job, JobRecord, Presence
from outbid_contracts.policy import Policy
from outbid_contracts.requests import JobList, parse_params, parse_policy
from outbid_contracts.roles import submitter_of
from outbid_contracts.submitting import parse_submit
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.again import again_as, next_id, prioritise
from outbid_node.durable.book import Book
from outbid_node.durable.claims import step_back
from outbid_node.durable.records import ending
from outbid_node.micro import Request, Service, error_headers
from outbid_node.policies import Policies
from outbid_node.registry import Registry

PASS_ON_S = 10.0
"""How long an always-on node may take to accept jobs; its disk may be an SD card."""

SEEN_S = 3.0
"""How long after its start a node knows all the others for certain."""

WANTED_S = 1.0
"""How long the node that passed jobs on may take to say that it still waits."""

Find = Callable[[JobId], Awaitable[JobRecord]]
FindMany = Callable[[Collection[JobId]], Awaitable[tuple[JobList, list[Presence]]]]


class Desk:
    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        catalogue: Catalogue,
        book: Book,
        find: Find,
        find_elsewhere: FindMany,
        always_on: bool,
        trouble: Callable[[], str | None],
    ) -> None:
        """`find` looks for a job in the whole mesh (UnknownJob); `find_elsewhere` asks the other nodes which they own
        or claim; `trouble` says why nothing can be written here.
        """
        self.me = me
        self.bus = bus
        self.registry = registry
        self.catalogue = catalogue
        self.book = book
        self.always_on = always_on
        self.policies = Policies()
        self._find = find
        self._find_elsewhere = find_elsewhere
        self._trouble = trouble
        self._passing: set[str] = set()
        self._started = time.monotonic()

    def register(self, service: Service) -> None:
        verbs = {
            "submit": self.submit,
            "result": self.result,
            "watch": self.watch,
            "retry": self.retry,
            "priority": self.priority,
        }
        for verb, handler in verbs.items():
            service.add(f"jobs-{verb}", subjects.jobs(verb), handler, queue=subjects.OWNERS)

    # -- faces ----------------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> None:
        asked = parse_submit(request.data, request.read_format())
        new = asked.new or all(job.job is None for job in asked.jobs)  # ids made up here are known to nobody
        asked = msgspec.structs.replace(
            asked, jobs=tuple(_named(job) for job in asked.jobs), new=new, submitter=submitter_of(request.reply)
        )
        reply = await self._submitted_to(asked)
        single = len(reply.jobs) == 1 and not _is_list(request)
        request.respond(reply.jobs[0] if single else reply)

    async def _submitted_to(self, asked: SubmitRequest) -> SubmitReply:
        if asked.owner not in (None, self.me):
            reply: SubmitReply = await self._call(asked.owner, "submit", asked, SubmitReply, PASS_ON_S)
            return reply
        return await (self._accept(asked) if asked.here else self._place(asked))

    async def result(self, request: Request) -> None:
        asked: ResultRequest = _read(request, ResultRequest)
        finished = await self._result_of(asked)
        request.respond(finished.flat())

    async def watch(self, request: Request) -> None:
        asked: WatchRequest = _read(request, WatchRequest)
        await self.book.until_ready()
        here = self.book.owns(asked.job) or await self.book.ended_record(asked.job) is not None
        owner = self.me if here else (await self._durable(asked.job)).owner
        asked = msgspec.structs.replace(asked, reply=request.reply, format=request.reply_format.value)
        if owner == self.me:
            await self._watch(asked)
        else:
            await self._call(owner, "watch", asked, Submitted, PASS_ON_S)

    async def retry(self, request: Request) -> None:
        asked: RetryRequest = _read(request, RetryRequest)
        await self.book.until_ready()
        found = await self._durable(asked.job)
        here = found.owner == self.me
        reply = await (self._retry(asked) if here else self._call(found.owner, "retry", asked, Submitted, PASS_ON_S))
        request.respond(reply)

    async def priority(self, request: Request) -> None:
        asked: PriorityRequest = _read(request, PriorityRequest)
        await self.book.until_ready()
        found = await self._durable(asked.job)
        if found.owner == self.me:
            request.respond(await self._prioritise(asked))
        else:
            request.respond(await self._call(found.owner, "priority", asked, JobRecord, PASS_ON_S))

    # -- other nodes ----------------------------------------------------------------------------------------------

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What `mesh.node.<me>.<verb>` is answered with."""
        match verb:
            case "submit":
                return lambda msg: self._submitted_to(decode(msg.data, SubmitRequest))
            case "result":
                return lambda msg: self._result_here(decode(msg.data, ResultRequest))
            case "watch":
                return lambda msg: self._watch_for(decode(msg.data, WatchRequest))
            case "retry":
                return lambda msg: self._retry(decode(msg.data, RetryRequest))
            case "priority":
                return lambda msg: self._prioritise(decode(msg.data, PriorityRequest))
            case "wanted":
                return lambda msg: self._wanted(decode(msg.data, SubmitRequest))
        return None

    async def _watch_for(self, asked: WatchRequest) -> Submitted:
        """Streams to the caller by itself; the node that passed the question on has its answer at once."""
        record = await self._own(asked.job)
        self.bus.background(self._watch(asked))
        return self._submitted(record, known=True)

    async def _call(self, node: NodeId, verb: str, message: Any, type: Any, timeout_s: float) -> Any:
        name = self.registry.name_of(node)
        try:
            return await self.bus.call(subjects.node(node, verb), message, type, timeout_s=timeout_s)
        except (NoResponders, TimeoutError) as error:
            raise NodeUnreachable(f"{name}, which owns the job, does not answer; ask again in a moment") from error

    # -- accepting ------------------------------------------------------------------------------------------------

    async def _place(self, asked: SubmitRequest) -> SubmitReply:
        """Hand the jobs to an always-on node, if this one is none and there is one."""
        if not self.always_on:
            for node in self._always_on_nodes():
                if (reply := await self._pass_on(node, asked)) is not None:
                    return reply
        return await self._accept(asked)

    def _always_on_nodes(self) -> list[NodeId]:
        there = [peer.presence for peer in self.registry if peer.presence.always_on and peer.presence.state == "up"]
        return [p.node for p in sorted(there, key=lambda p: (p.waiting, p.node)) if p.node != self.me and not p.trouble]

    async def _pass_on(self, node: NodeId, asked: SubmitRequest) -> SubmitReply | None:
        """None if that node does not take them, for certain."""
        ticket, name = secrets.token_hex(8), self.registry.name_of(node)
        message = msgspec.structs.replace(asked, owner=node, here=True, passed_by=self.me, ticket=ticket)
        self._passing.add(ticket)
        try:
            reply: SubmitReply = await self.bus.call(
                subjects.node(node, "submit"), message, SubmitReply, timeout_s=PASS_ON_S
            )
            return reply
        except (NoResponders, StorageFailed, UnknownCapability):
            return None
        except TimeoutError:
            ids = ", ".join(str(job.job) for job in asked.jobs[:3])
            more = f" and {len(asked.jobs) - 3} more" if len(asked.jobs) > 3 else ""
            raise NodeUnreachable(
                f"{name} did not say whether it has the jobs; submit them again with the same "
                f"ids ({ids}{more}): none will run twice",
                jobs=[job.job for job in asked.jobs],
            ) from None
        finally:
            self._passing.discard(ticket)

    async def _accept(self, asked: SubmitRequest) -> SubmitReply:
        if trouble := self._trouble():
            raise StorageFailed(trouble)
        await self.book.until_ready()
        records = {record.job.id: record for record in self._records(asked)}
        for turn in itertools.count():
            await self.book.claims.until_free(records)
            with self.book.claims.held(records):
                if (reply := await self._take(asked, records)) is not None:
                    return reply
            await step_back(turn)
        raise AssertionError

    async def _take(self, asked: SubmitRequest, records: dict[JobId, DurableJob]) -> SubmitReply | None:
        """Their ids are claimed. None: another node claims one of them too."""
        known = {} if asked.new else await self._known(records, asked)
        if known is None:
            return None
        fresh = [record for id, record in records.items() if id not in known]
        await self._check_after(fresh, records)
        if fresh:
            await self._check_wanted(asked)
            await self.book.accept(fresh)
        return SubmitReply(jobs=tuple(known.get(id) or self._accepted(record) for id, record in records.items()))

    async def _check_wanted(self, asked: SubmitRequest) -> None:
        """What was passed on may have come late (this node was frozen, or cut off), and be another's by now."""
        if asked.passed_by is None:
            return
        question = SubmitRequest(jobs=(), ticket=asked.ticket)
        try:
            await self.bus.call(subjects.node(asked.passed_by, "wanted"), question, SubmitReply, timeout_s=WANTED_S)
        except (NoResponders, TimeoutError) as error:
            raise NodeUnreachable("the node that passed the jobs on does not answer; nothing was accepted") from error

    async def _wanted(self, asked: SubmitRequest) -> SubmitReply:
        if asked.ticket not in self._passing:
            raise NodeUnreachable("nobody waits for that any more")
        return SubmitReply(jobs=())

    def _records(self, asked: SubmitRequest) -> Iterator[DurableJob]:
        """Raises UnknownCapability or InvalidRequest, naming the job if there are several."""
        for n, job in enumerate(asked.jobs):
            try:
                yield self._record(job, asked.submitter)
            except OutbidError as error:
                if len(asked.jobs) == 1:
                    raise
                raise type(error)(f"jobs[{n}]: {error.message}", **error.detail) from error

    def _record(self, submission: Submission, submitter: str) -> DurableJob:
        """Raises UnknownCapability, InvalidRequest."""
        capability = self.catalogue.declared(submission.capability)
        params = parse_params(submission.params, capability)
        assert submission.job is not None
        now = time.time()
        policy = submission.policy
        job = Job(
            id=submission.job,
            owner=self.me,
            capability=capability.name,
            params=msgspec.to_builtins(params, builtin_types=(bytes,)),
            work=capability.work(params),
            prefix=self.catalogue.prefixes.of(capability, params),
            model=capability.model_of(params),
            policy=self.policies.settled(policy if isinstance(policy, Policy) else parse_policy(policy)),
            reply=subjects.events(self.me, submission.job) if capability.chunk is not None else None,
            created_ms=int(now * 1000),
            durable=True,
            keep_s=submission.keep_s,
            submitter=submitter,
        )
        starts_s = submission.not_before or (now + submission.delay_s if submission.delay_s else 0.0)
        terms = Terms(
            priority=submission.priority,
            not_before_ms=int(starts_s * 1000),
            delay_s=submission.delay_s or 0.0,
            after=submission.after,
            max_attempts=submission.max_attempts,
            keep_s=submission.keep_s or KEEP_S,
        )
        return DurableJob(job=job, terms=terms)

    async def _known(self, records: Collection[JobId], asked: SubmitRequest) -> dict[JobId, Submitted] | None:
        """Those that were submitted before, here or elsewhere; None if another node claims one of the rest. Raises
        NodeUnreachable while a node that may have taken one does not answer.
        """
        found = {id: self._submitted(record, known=True) for id in records if (record := await self.book.find(id))}
        for id in records:
            if id not in found and id in self.book.owner.running:
                raise DuplicateJob(f"an interactive job {id} is running; choose another id")
        rest = [id for id in records if id not in found]
        if not (self.always_on and asked.owner == self.me):
            await self._until_others_seen()
        elsewhere, silent = await self._find_elsewhere(rest)
        found |= {record.id: self._submitted(record, known=True) for record in elsewhere.jobs}
        if found.keys() < set(records):
            self._check_silent([p.name for p in silent if self._may_have_taken(p, asked)])
        return None if set(elsewhere.claimed) - found.keys() else found

    async def _until_others_seen(self) -> None:
        """A node that has just started does not know yet whom to ask."""
        await asyncio.sleep(max(0.0, self._started + SEEN_S - time.monotonic()))

    def _may_have_taken(self, peer: Presence, asked: SubmitRequest) -> bool:
        """Named as the only one, this node took them itself or passed them on."""
        return peer.always_on and not self.always_on if asked.owner == self.me and not asked.here else True

    def _check_silent(self, names: Sequence[str]) -> None:
        if names:
            raise NodeUnreachable(
                f"{', '.join(names)} may have these jobs and does not answer; submit them again with the same ids in a "
                "moment"
            )

    async def _check_after(self, fresh: list[DurableJob], all: Collection[JobId]) -> None:
        wanted = {before for record in fresh for before in record.terms.after} - set(all)
        missing = wanted - set(await self.book.states_of(wanted)) if wanted else set()
        if missing:
            missing -= {record.id for record in (await self._find_elsewhere(missing))[0].jobs}
        if missing:
            raise InvalidRequest(f"`after` names {', '.join(sorted(missing))}, which nobody knows")

    def _accepted(self, record: DurableJob) -> Submitted:
        parked = self.book.parked.get(record.job.id)
        return Submitted(
            job=record.job.id,
            owner=self.me,
            name=self.registry.name_of(self.me),
            state=record.state,
            note=self.book.reason(parked) if parked else "",
        )

    def _submitted(self, record: JobRecord, *, known: bool = False) -> Submitted:
        name = self.registry.name_of(record.owner)
        return Submitted(
            job=record.id, owner=record.owner, name=name, state=record.state, known=known, note=record.reason
        )

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _durable(self, id: JobId) -> JobRecord:
        """Raises UnknownJob, or NodeUnreachable while a node that may know it is away; InvalidRequest for a job that is
        interactive.
        """
        try:
            record = await self.book.find(id) or await self._find(id)
        except UnknownJob as error:
            away = error.detail.get("away", ())
            if away:
                raise NodeUnreachable(
                    f"{', '.join(away)} may know job {id} and is away; ask again in a moment"
                ) from error
            raise
        if not record.durable:
            raise InvalidRequest(
                f"job {id} is interactive: its result went to its caller; `outbid submit` makes durable ones"
            )
        return record

    async def _own(self, id: JobId) -> JobRecord:
        await self.book.until_ready()
        record = await self.book.find(id)
        if record is None and id in self.book.owner.ended:
            raise UnknownJob(f"job {id} ended, and its result is not kept any more (`keep_s`)")
        if record is None:
            raise _moved(id)
        return record

    async def _result_of(self, asked: ResultRequest) -> Finished:
        await self.book.until_ready()
        if self.book.owns(asked.job) or (await self.book.ended_record(asked.job)) is not None:
            return await self._result_here(asked)
        owner = (await self._durable(asked.job)).owner
        if owner == self.me:
            return await self._result_here(asked)
        timeout_s = min(asked.wait_s, MAX_WAIT_S) + PASS_ON_S
        finished: Finished = await self._call(owner, "result", asked, Finished, timeout_s)
        return finished

    async def _result_here(self, asked: ResultRequest) -> Finished:
        record = await self.book.end_of(asked.job, min(asked.wait_s, MAX_WAIT_S))
        if record is None:
            found = await self._own(asked.job)
            raise NotDone(
                f"job {asked.job} is {found.state}{': ' if found.reason else ''}{found.reason}", state=found.state
            )
        if record.finished is None:
            raise from_body(record.error) if record.error else UnknownJob(f"job {asked.job} has no result")
        return record.finished

    async def _watch(self, asked: WatchRequest) -> None:
        format = Format(asked.format)

        def emit(event: JobEvent) -> None:
            self.bus.post(asked.reply, encode(event, format))

        try:
            await self.book.until_ready()
            end = asyncio.ensure_future(self._until_end(asked.job))
            try:
                await self.book.events.watch(asked.job, emit, end)
                emit(ending(await end))
            finally:
                end.cancel()
        except OutbidError as error:
            self.bus.post(asked.reply, encode(error.body(), format), headers=error_headers(error, format))
        self.bus.post(asked.reply, b"")

    async def _until_end(self, id: JobId) -> DurableJob:
        while (record := await self.book.end_of(id, MAX_WAIT_S)) is None:
            if not self.book.owns(id):
                raise _moved(id)
        return record

    async def _prioritise(self, asked: PriorityRequest) -> JobRecord:
        await self.book.until_ready()
        record = await prioritise(self.book, asked.job, asked.priority)
        if record is None:
            found = await self._own(asked.job)
            state = "about to run" if found.state == "waiting" else found.state
            raise InvalidRequest(f"job {asked.job} is {state}: only one that waits can have another priority")
        return record

    # -- again ----------------------------------------------------------------------------------------------------

    async def _retry(self, asked: RetryRequest) -> Submitted:
        await self.book.until_ready()
        record = await self.book.ended_record(asked.job)
        if record is None:
            raise InvalidRequest(f"job {asked.job} has not ended: it is {(await self._own(asked.job)).state}")
        if record.state == "done":
            raise InvalidRequest(f"job {asked.job} is done; its result stands")
        if not record.job.params and record.finished:
            raise InvalidRequest(f"the parameters of job {asked.job} were not kept")
        id = next_id(asked.job)
        await self.book.claims.until_free([id])
        with self.book.claims.held([id]):
            if (known := await self.book.find(id)) is not None:
                return self._submitted(known, known=True)
            again = again_as(id, record, self.me)
            await self.book.accept([again])
            return self._accepted(again)


def _moved(id: JobId) -> NodeUnreachable:
    """It was this node's a moment ago."""
    return NodeUnreachable(f"job {id!r} is another node's now; ask again in a moment")


def _named(job: Submission) -> Submission:
    return job if job.job is not None else msgspec.structs.replace(job, job=new_job_id())


def _is_list(request: Request) -> bool:
    body: Any = decode(request.data, Any, request.format)
    return "jobs" in body


def _read(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT:
        raise InvalidRequest('this endpoint takes a JSON object, e.g. {"job": "…"}')
    return decode(request.data, type, request.format)
