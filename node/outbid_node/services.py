"""The endpoints of a node: what faces ask (any node answers) and what other nodes ask of this one."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.admin import NewKey, Revocations
from outbid_contracts.capability import Capability
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import DuplicateJob, InvalidRequest, OutbidError, UnknownJob
from outbid_contracts.events import Finished
from outbid_contracts.ids import NodeId, new_job_id
from outbid_contracts.messages import (
    Award,
    CallForProposals,
    CancelAttempt,
    Job,
    JobList,
    JobQuery,
    JobRecord,
    LeaseCheck,
    Settle,
    Settled,
)
from outbid_contracts.requests import (
    JobRequest,
    JobsReply,
    JobsRequest,
    ModelList,
    ModelView,
    NodeList,
    NodeView,
    parse_request,
)
from outbid_contracts.requests import Request as ParsedRequest
from outbid_contracts.schema import request_schema, result_schema
from outbid_node.admin import Admin
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.micro import Request, Service, error_headers
from outbid_node.owned import OwnedJob
from outbid_node.owner import Owner
from outbid_node.registry import Registry
from outbid_node.worker import Worker

log = logging.getLogger(__name__)

SCATTER_TIMEOUT_S = 1.0
"""How long a listing waits for the slowest node."""

CANCEL_TIMEOUT_S = 7.0


class FaceEndpoints:
    """`mesh.<capability>`, `mesh.jobs.*`, `mesh.nodes.list`, `mesh.models.list`: micro-service endpoints of every
    node.
    """

    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, owner: Owner, catalogue: Catalogue) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.owner = owner
        self.catalogue = catalogue

    def register(self, service: Service) -> None:
        for name, entry in self.catalogue.entries.items():
            service.add(
                name.replace(".", "-"),
                subjects.capability(name),
                self._capability_handler(entry.capability),
                queue=subjects.OWNERS,
                metadata=_metadata(entry.capability),
            )
        for verb, handler in (("list", self.jobs), ("get", self.job), ("cancel", self.cancel)):
            service.add(f"jobs-{verb}", subjects.jobs(verb), handler, queue=subjects.OWNERS)
        service.add("nodes-list", subjects.NODES, self.nodes, queue=subjects.OWNERS)
        service.add("models-list", subjects.MODELS, self.models, queue=subjects.OWNERS)

    # -- work -----------------------------------------------------------------------------------------------------

    def _capability_handler(self, capability: Capability) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            parsed = parse_request(request.data, capability, request.read_format())
            if parsed.stream:
                await self._stream(capability, request, parsed)
            else:
                finished = await self._result(capability, request, parsed)
                request.respond(_flat(finished))

        return handle

    async def _stream(self, capability: Capability, request: Request, parsed: ParsedRequest) -> None:
        try:
            finished = await self._result(capability, request, parsed)
            self.bus.post(request.reply, request.encoded(finished))
        except OutbidError as error:
            request.respond_error(error)
            raise
        finally:
            request.end_stream()

    async def _result(self, capability: Capability, request: Request, parsed: ParsedRequest) -> Finished:
        if parsed.job is not None and (known := self.owner.find(parsed.job)) is not None:
            return await _repeat(known)
        reply = request.reply if parsed.stream else None
        job = Job(
            id=parsed.job or new_job_id(),
            owner=self.me,
            capability=capability.name,
            params=msgspec.to_builtins(parsed.params),
            work=capability.work(parsed.params),
            model=capability.model_of(parsed.params),
            policy=parsed.policy,
            reply=reply,
            format=request.reply_format.value,
            created_ms=time.time_ns() // 1_000_000,
        )
        owned = self.owner.accept(job, self._teller(reply, request.reply_format))
        assert owned.task is not None
        return await asyncio.shield(owned.task)

    def _teller(self, reply: str | None, format: Format) -> Callable[[Any], None]:
        if not reply:
            return lambda event: None
        return lambda event: self.bus.post(reply, encode(event, format))

    # -- questions ------------------------------------------------------------------------------------------------

    async def nodes(self, request: Request) -> None:
        request.read_format()
        now = time.monotonic()
        views = [
            NodeView(
                presence=peer.presence,
                age_s=round(now - peer.seen, 3),
                rtt_ms=round(peer.rtt_s * 1000, 3) if peer.rtt_s is not None else None,
                here=peer.presence.node == self.me,
            )
            for peer in self.registry
        ]
        request.respond(NodeList(nodes=tuple(sorted(views, key=lambda v: (not v.here, v.presence.name)))))

    async def models(self, request: Request) -> None:
        request.read_format()
        views = [
            ModelView(
                model=offer.model,
                capability=offer.capability,
                node=peer.presence.node,
                name=peer.presence.name,
                warm=offer.warm,
                default=offer.default,
                slots=offer.slots,
                free=offer.free,
                blocked=offer.blocked,
            )
            for peer in self.registry
            for offer in peer.presence.offers
            if offer.model is not None
        ]
        request.respond(ModelList(models=tuple(sorted(views, key=lambda v: (v.model, v.name, v.capability)))))

    async def jobs(self, request: Request) -> None:
        asked = _question(request, JobsRequest)
        limit = max(1, min(asked.limit, 1000))
        query = JobQuery(verb="list", limit=limit, state=asked.state)
        found, silent = await self._scatter(query, SCATTER_TIMEOUT_S)
        found += self.owner.records(limit, asked.state)
        found.sort(key=lambda record: record.created_ms, reverse=True)
        request.respond(JobsReply(jobs=tuple(found[:limit]), silent=tuple(silent)))

    async def job(self, request: Request) -> None:
        await self._one_job(request, "get", SCATTER_TIMEOUT_S)

    async def cancel(self, request: Request) -> None:
        await self._one_job(request, "cancel", CANCEL_TIMEOUT_S)

    async def _one_job(self, request: Request, verb: Any, timeout_s: float) -> None:
        asked = _question(request, JobRequest)
        owned = self.owner.find(asked.job)
        if owned is not None:
            request.respond(await self.owner.cancel(asked.job) if verb == "cancel" else owned.record())
            return
        found, silent = await self._scatter(JobQuery(verb=verb, job=asked.job), timeout_s)
        if not found:
            missing = f"; {', '.join(silent)} did not answer" if silent else ""
            raise UnknownJob(f"no node knows job {asked.job!r}{missing}; `outbid jobs` lists the recent ones")
        request.respond(found[0])

    async def _scatter(self, query: JobQuery, timeout_s: float) -> tuple[list[JobRecord], list[str]]:
        """Ask every other node; returns their records and the names of the nodes that did not answer."""
        others = [peer.presence for peer in self.registry if peer.presence.node != self.me]
        calls = (
            self.bus.call(subjects.node(presence.node, "jobs"), query, JobList, timeout_s=timeout_s)
            for presence in others
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found: list[JobRecord] = []
        silent = []
        for presence, answer in zip(others, answers, strict=True):
            if isinstance(answer, JobList):
                found += answer.jobs
            else:
                silent.append(presence.name)
        return found, silent


class NodeEndpoints:
    """`mesh.node.<id>.<verb>`: what nodes ask of each other. MessagePack both ways."""

    def __init__(self, *, me: NodeId, bus: Bus, owner: Owner, worker: Worker, admin: Admin) -> None:
        self.me = me
        self.bus = bus
        self.owner = owner
        self.worker = worker
        self.admin = admin
        self.unreadable = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self.bus.subscribe(subjects.node(self.me, "*"), self._on_message)

    async def _on_message(self, msg: Msg) -> None:
        await self._answer(msg, msg.subject.rpartition(".")[2])

    async def _answer(self, msg: Msg, verb: str) -> None:
        try:
            reply = self._dispatch(verb, msg)
        except OutbidError as error:
            self._unreadable(msg, verb, error)
            return
        except Exception as error:
            log.exception("%s from another node failed", verb, extra={"action": "peer_request_failed"})
            self._unreadable(msg, verb, OutbidError(f"internal error: {error}"))
            return
        if reply is not None and msg.reply:
            self.bus.post(msg.reply, encode(reply))

    def _dispatch(self, verb: str, msg: Msg) -> Any:
        match verb:
            case "award":
                return self.worker.award(decode(msg.data, Award))
            case "settle":
                return Settled(accepted=self.owner.settle(decode(msg.data, Settle)))
            case "lease":
                return self.worker.lease_check(decode(msg.data, LeaseCheck))
            case "cfp":
                return self.worker.propose(decode(msg.data, CallForProposals))
            case "cancel":
                return self.worker.cancel(decode(msg.data, CancelAttempt))
            case "rekey":
                return self.admin.take_key(decode(msg.data, NewKey))
            case "jobs":
                return self._later(self._jobs(decode(msg.data, JobQuery), msg.reply))
            case "revoked":
                return self._later(self._revoked(decode(msg.data, Revocations), msg.reply))
            case _:
                raise OutbidError(f"unknown verb {verb!r}")

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _revoked(self, theirs: Revocations, reply: str) -> None:
        self.bus.post(reply, encode(await self.admin.take_revocations(theirs)))

    async def _jobs(self, query: JobQuery, reply: str) -> None:
        if query.verb == "list":
            records = self.owner.records(min(query.limit, 1000), query.state)
        else:
            owned: OwnedJob | None = self.owner.find(query.job) if query.job else None
            if owned is None:
                records = []
            elif query.verb == "cancel":
                records = [await self.owner.cancel(owned.job.id)]
            else:
                records = [owned.record()]
        self.bus.post(reply, encode(JobList(jobs=tuple(records))))

    def _unreadable(self, msg: Msg, verb: str, error: OutbidError) -> None:
        self.unreadable += 1
        log.warning("%s: %s", verb, error.message[:200], extra={"action": "peer_message_refused"})
        if msg.reply:
            self.bus.post(msg.reply, encode(error.body()), headers=error_headers(error, Format.MSGPACK))


async def _repeat(known: OwnedJob) -> Finished:
    """The result of a job submitted before under the same id."""
    if known.finished is not None:
        return known.finished
    if known.task is None:
        raise DuplicateJob(f"job {known.job.id} ended before; results of interactive jobs are kept for a minute only")
    return await asyncio.shield(known.task)


def _question(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest('this endpoint takes a JSON object, not bare text; e.g. {"job": "…"} or {"limit": 5}')
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)


def _flat(finished: Finished) -> dict[str, Any]:
    """The single reply: the result's own fields beside job, node, name, attempt and timings."""
    return finished.result | {
        "job": finished.job,
        "node": finished.node,
        "name": finished.name,
        "attempt": finished.attempt,
        "timings": finished.timings,
    }


def _metadata(capability: Capability) -> dict[str, str]:
    return {
        "schema": json.dumps({"request": request_schema(capability), "response": result_schema(capability)}),
        "summary": capability.summary,
        "content-types": "application/json, application/msgpack, text/plain",
    }
