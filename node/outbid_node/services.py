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
from outbid_contracts.admin import NewKey, Revocations, Sleeper
from outbid_contracts.capability import Capability
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import Draining, DuplicateJob, InvalidRequest, NoBid, OutbidError, UnknownModel
from outbid_contracts.events import Finished
from outbid_contracts.ids import NodeId, new_job_id
from outbid_contracts.keeping import Released
from outbid_contracts.messages import (
    Award,
    CallForProposals,
    CancelAttempt,
    Job,
    LeaseCheck,
    SaveCheckpoint,
    Settle,
    Settled,
)
from outbid_contracts.requests import (
    JobQuery,
    JobRequest,
    JobsReply,
    JobsRequest,
    NodeList,
    NodeView,
    Resume,
    parse_request,
)
from outbid_contracts.requests import Request as ParsedRequest
from outbid_contracts.roles import submitter_of
from outbid_contracts.schema import request_schema, result_schema
from outbid_node.admin import Admin
from outbid_node.artifacts.assembly import Artifacts
from outbid_node.catalogue import Catalogue
from outbid_node.client import Bus
from outbid_node.delivered import Delivered, floor_of
from outbid_node.durable.assembly import Durable
from outbid_node.files.service import ModelFiles
from outbid_node.history.desk import HistoryDesk
from outbid_node.lookup import Lookup
from outbid_node.micro import Handler, Request, Service, Underway, error_headers
from outbid_node.model_list import model_list
from outbid_node.owned import OwnedJob, nobody
from outbid_node.owner import Owner
from outbid_node.policies import Policies
from outbid_node.registry import Registry
from outbid_node.what_if import WhatIfDesk
from outbid_node.worker import Worker

log = logging.getLogger(__name__)


class FaceEndpoints:
    """`mesh.<capability>`, `mesh.jobs.*`, `mesh.nodes.list`, `mesh.models.list`: micro-service endpoints of every
    node.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        registry: Registry,
        owner: Owner,
        lookup: Lookup,
        catalogue: Catalogue,
        policies: Policies,
    ) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.owner = owner
        self.lookup = lookup
        self.catalogue = catalogue
        self.policies = policies
        self.away: Callable[[], tuple[Sleeper, ...]] = tuple
        """Machines that were here and are not now."""
        self.what_if = WhatIfDesk(
            me=me, bus=bus, registry=registry, owner=owner, lookup=lookup, catalogue=catalogue, policies=policies
        )

    def register(self, service: Service) -> None:
        for name, entry in self.catalogue.entries.items():
            service.add(
                name.replace(".", "-"),
                subjects.capability(name),
                self._capability_handler(entry.capability),
                queue=subjects.OWNERS,
                metadata=_metadata(entry.capability),
            )
        verbs = {"list": self.jobs, "get": self.job, "cancel": self.cancel, "what-if": self.what_if.answer}
        for verb, handler in verbs.items():
            service.add(f"jobs-{verb}", subjects.jobs(verb), handler, queue=subjects.OWNERS)
        service.add("nodes-list", subjects.NODES, self.nodes, queue=subjects.OWNERS)
        service.add("models-list", subjects.MODELS, self.models, queue=subjects.OWNERS)

    # -- work -----------------------------------------------------------------------------------------------------

    def _capability_handler(self, capability: Capability) -> Handler:
        def handle(request: Request) -> Coroutine[Any, Any, None] | Underway:
            parsed = parse_request(request.data, capability, request.read_format())
            if parsed.stream:
                return self._stream(capability, request, parsed)
            if parsed.job is not None:
                return self._respond(capability, request, parsed)
            return Underway(self._begin(capability, request, parsed), lambda finished: request.respond(finished.flat()))

        return handle

    async def _respond(self, capability: Capability, request: Request, parsed: ParsedRequest) -> None:
        finished = await self._result(capability, request, parsed)
        request.respond(finished.flat())

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
        known = self.owner.find(parsed.job) if parsed.job is not None else None
        if known is not None and not (parsed.resume is not None and isinstance(known.error, _MAY_PASS)):
            if parsed.resume is not None and parsed.stream and known.state in ("waiting", "running"):
                self._move(known, request, parsed.resume)
            return await _repeat(known)
        if parsed.job in self.lookup.book.parked:
            raise DuplicateJob(f"{parsed.job} is a durable job that waits; ask for its result, or choose another id")
        return await asyncio.shield(self._begin(capability, request, parsed))

    def _begin(self, capability: Capability, request: Request, parsed: ParsedRequest) -> asyncio.Task[Finished]:
        """Take it on as a new job; the task ends with it."""
        reply = request.reply if parsed.stream else None
        job = Job(
            id=parsed.job or new_job_id(),
            owner=self.me,
            capability=capability.name,
            params=msgspec.to_builtins(parsed.params, builtin_types=(bytes,)),
            work=capability.work(parsed.params),
            prefix=self.catalogue.prefixes.of(capability, parsed.params) if capability.reads is not None else b"",
            model=capability.model_of(parsed.params),
            policy=self.policies.settled(parsed.policy),
            reply=reply,
            format=request.reply_format.value,
            created_ms=time.time_ns() // 1_000_000,
            submitter=submitter_of(request.reply),
        )
        delivered = Delivered.of(capability, self.bus, job, parsed.resume)
        floor = floor_of(parsed.resume)
        owned = self.owner.accept(job, self._teller(reply, request.reply_format), delivered, floor)
        assert owned.task is not None
        return owned.task

    def _move(self, known: OwnedJob, request: Request, resume: Resume) -> None:
        """A caller that lost its connection goes on reading at another inbox of its own. Raises DuplicateJob for
        somebody else.
        """
        if known.job.reply is None or known.job.reply.partition(".")[0] != request.reply.partition(".")[0]:
            raise DuplicateJob
        self.owner.move(known, request.reply, self._teller(request.reply, request.reply_format), resume)

    def _teller(self, reply: str | None, format: Format) -> Callable[[Any], None]:
        if not reply:
            return nobody
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
        ordered = sorted(views, key=lambda v: (not v.here, v.presence.name))
        request.respond(NodeList(nodes=tuple(ordered), away=self.away()))

    async def models(self, request: Request) -> None:
        request.read_format()
        request.respond(model_list([peer.presence for peer in self.registry]))

    async def jobs(self, request: Request) -> None:
        asked = _question(request, JobsRequest)
        found, silent = await self.lookup.newest(asked.limit, asked.state)
        request.respond(JobsReply(jobs=tuple(found), silent=tuple(silent)))

    async def job(self, request: Request) -> None:
        asked = _question(request, JobRequest)
        request.respond(await self.lookup.find(asked.job, recall=True))

    async def cancel(self, request: Request) -> None:
        asked = _question(request, JobRequest)
        request.respond(await self.lookup.cancel(asked.job))


class NodeEndpoints:
    """`mesh.node.<id>.<verb>`: what nodes ask of each other. MessagePack both ways."""

    def __init__(
        self,
        *,
        me: NodeId,
        bus: Bus,
        owner: Owner,
        worker: Worker,
        admin: Admin,
        durable: Durable,
        artifacts: Artifacts,
        files: ModelFiles,
        history: HistoryDesk,
    ) -> None:
        self.me = me
        self.bus = bus
        self.owner = owner
        self.worker = worker
        self.admin = admin
        self.durable = durable
        self.artifacts = artifacts
        self.files = files
        self.history = history
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
                return self._settle(decode(msg.data, Settle), msg)
            case "checkpoint":
                return self.owner.saved(decode(msg.data, SaveCheckpoint))
            case "lease":
                return self.worker.lease_check(decode(msg.data, LeaseCheck))
            case "cfp":
                return self.worker.answer(decode(msg.data, CallForProposals))
            case "cancel":
                return self.worker.cancel(decode(msg.data, CancelAttempt))
            case "rekey":
                return self.admin.take_key(decode(msg.data, NewKey))
            case "jobs":
                return self._later(self.durable.lookup.answer(decode(msg.data, JobQuery)), msg, verb)
            case "revoked":
                return self._later(self.admin.take_revocations(decode(msg.data, Revocations)), msg, verb)
            case "released":
                return self._later(self.durable.mirroring.released(decode(msg.data, Released)), msg, verb)
            case _:
                parts = (self.durable, self.artifacts, self.files, self.history)
                if (work := next(filter(None, (part.answers(verb) for part in parts)), None)) is None:
                    raise OutbidError(f"unknown verb {verb!r}")
                return self._later(work(msg), msg, verb)

    def _settle(self, settle: Settle, msg: Msg) -> Settled | None:
        """An interactive job's at once; a durable one's when it is on disk."""
        owned = self.owner.running.get(settle.job)
        if owned is not None and owned.recorder is None:
            return Settled(accepted=self.owner.settle(settle))
        self._later(self._settle_durable(settle), msg, "settle")
        return None

    async def _settle_durable(self, settle: Settle) -> Settled | None:
        accepted = await self.durable.book.settle(settle)
        return None if accepted is None else Settled(accepted=accepted)

    def _later(self, work: Awaitable[Any], msg: Msg, verb: str) -> None:
        task = asyncio.ensure_future(self._respond(work, msg, verb))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, work: Awaitable[Any], msg: Msg, verb: str) -> None:
        try:
            reply = await work
        except OutbidError as error:
            self._refused(msg, verb, error)
        except Exception as error:
            log.exception("%s from another node failed", verb, extra={"action": "peer_request_failed"})
            self._refused(msg, verb, OutbidError(f"internal error: {error}"))
        else:
            if reply is not None and msg.reply:
                self.bus.post(msg.reply, encode(reply))

    def _unreadable(self, msg: Msg, verb: str, error: OutbidError) -> None:
        self.unreadable += 1
        log.warning("%s: %s", verb, error.message[:200], extra={"action": "peer_message_refused"})
        self._refused(msg, verb, error)

    def _refused(self, msg: Msg, verb: str, error: OutbidError) -> None:
        log.debug("%s: %s", verb, error.message[:200], extra={"action": "peer_request_refused"})
        if msg.reply:
            self.bus.post(msg.reply, encode(error.body()), headers=error_headers(error, Format.MSGPACK))


_MAY_PASS = (NoBid, UnknownModel, Draining)
"""Ends that say something about the moment: a stream that is taken up again is tried again."""


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


def _metadata(capability: Capability) -> dict[str, str]:
    return {
        "schema": json.dumps({"request": request_schema(capability), "response": result_schema(capability)}),
        "summary": capability.summary,
        "content-types": "application/json, application/msgpack, text/plain",
    }
