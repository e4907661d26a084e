"""Where artifacts are asked for: `mesh.artifacts.find|read`; among nodes `mesh.node.<me>.artifact|artifacts|read`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.aio.msg import Msg

from outbid_contracts import subjects
from outbid_contracts.artifacts import READ_BYTES, FindArtifacts, PutArtifact, ReadArtifact, is_artifact_id
from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import InvalidRequest, NodeUnreachable, OutbidError, UnknownArtifact
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import LeaseCheck, LeaseState
from outbid_contracts.roles import is_inbox
from outbid_node.artifacts.reach import Reach
from outbid_node.artifacts.receiving import Receiver
from outbid_node.client import Bus, NoResponders
from outbid_node.micro import Request, Service, error_headers
from outbid_node.registry import Registry

log = logging.getLogger(__name__)

AHEAD = 3
"""Pieces of one read on their way to the caller's node, at most (see `_Pace`)."""

PACE_S = 5.0
THERE_S = 2.0


class ArtifactDesk:
    def __init__(self, *, me: NodeId, bus: Bus, registry: Registry, reach: Reach, receiver: Receiver) -> None:
        self.me = me
        self.bus = bus
        self.registry = registry
        self.reach = reach
        self.receiver = receiver

    def register(self, service: Service) -> None:
        for verb, handler in (("find", self.find), ("read", self.read)):
            service.add(f"artifacts-{verb}", subjects.artifacts(verb), handler, queue=subjects.OWNERS)

    def answers(self, verb: str) -> Callable[[Msg], Awaitable[Any]] | None:
        """What `mesh.node.<me>.<verb>` is answered with."""
        match verb:
            case "artifact":
                return lambda msg: self.receiver.take(decode(msg.data, PutArtifact))
            case "artifacts":
                return lambda msg: self.reach.here(decode(msg.data, FindArtifacts))
            case "read":
                return lambda msg: self._read_for(decode(msg.data, ReadArtifact), msg.reply)
        return None

    # -- faces ---------------------------------------------------------------------------------------------------

    async def find(self, request: Request) -> None:
        asked: FindArtifacts = _asked(request, FindArtifacts)
        if asked.id is not None:
            _check_id(asked.id)
        request.respond(await self.reach.find(asked))

    async def read(self, request: Request) -> None:
        asked: ReadArtifact = _asked(request, ReadArtifact)
        _check_id(asked.id)
        if asked.node in (None, self.me) and asked.id in self.reach.store.shelf:
            await self._send(asked, request.reply, self.me)
            return
        holder = asked.node or (await self.reach.locate(asked.id)).node
        if holder == self.me:
            await self._send(asked, request.reply, self.me)
        elif request.reply:
            await self._check_there(holder, asked.id)
            passed_on = msgspec.structs.replace(asked, via=self.me, format=request.reply_format.value)
            self.bus.post(subjects.node(holder, "read"), encode(passed_on), reply=request.reply)

    async def _check_there(self, holder: NodeId, id: str) -> None:
        """Raises NodeUnreachable. That nobody listens the server tells the sender only, and the caller is another."""
        try:
            if holder not in self.registry:
                raise NoResponders
            check = LeaseCheck(owner=self.me, attempts=())
            await self.bus.call(subjects.node(holder, "lease"), check, LeaseState, timeout_s=THERE_S)
        except (NoResponders, TimeoutError) as error:
            name = self.registry.name_of(holder)
            raise NodeUnreachable(f"{name}, which holds artifact {id}, is away; ask again when it is back") from error

    # -- the holder ----------------------------------------------------------------------------------------------

    async def _read_for(self, asked: ReadArtifact, reply: str) -> None:
        """Straight to the caller of another node, errors too."""
        if not is_inbox(reply):
            return
        format = Format.MSGPACK if asked.format == Format.MSGPACK else Format.JSON
        try:
            await self._send(asked, reply, asked.via or self.me)
        except OutbidError as error:
            self.bus.post(reply, encode(error.body(), format), headers=error_headers(error, format))

    async def _send(self, asked: ReadArtifact, reply: str, via: NodeId) -> None:
        """Raises UnknownArtifact, StorageFailed."""
        artifact = await self.reach.store.find(asked.id)
        if artifact is None:
            raise UnknownArtifact(f"this node does not hold artifact {asked.id!r} (any more)")
        pace = _Pace(self.bus, self.me, via)
        try:
            async for offset, piece in self.reach.store.read(asked.id, asked.offset, asked.length or READ_BYTES):
                await pace.wait()
                await asyncio.sleep(0)  # other readers, and everything else
                self.bus.post(reply, piece, headers={"Outbid-Offset": str(offset)})
                pace.sent()
        except (NoResponders, TimeoutError):
            log.info("a reader of %s is gone", asked.id, extra={"action": "artifact_reader_gone"})
            return
        finally:
            pace.close()
        self.bus.post(reply, b"", headers={"Outbid-Size": str(artifact.size)})


class _Pace:
    """Keeps a read from filling the way to a slow node, where heartbeats would have to stand behind its pieces.

    After each piece the caller's node is asked something small, which comes back behind that piece; no more than AHEAD
    pieces are unanswered. (A flush of the connection must not be cancelled: nats-py then trips over the answer.)
    """

    def __init__(self, bus: Bus, me: NodeId, via: NodeId) -> None:
        self._bus = bus
        self._me = me
        self._via = via
        self._asked: deque[asyncio.Task[None]] = deque()

    def sent(self) -> None:
        self._asked.append(asyncio.create_task(self._ask()))

    async def wait(self) -> None:
        """Raises NoResponders or TimeoutError if that node is gone."""
        if len(self._asked) >= AHEAD:
            await self._asked.popleft()

    async def _ask(self) -> None:
        check = LeaseCheck(owner=self._me, attempts=())
        await self._bus.call(subjects.node(self._via, "lease"), check, LeaseState, timeout_s=PACE_S)

    def close(self) -> None:
        for task in self._asked:
            task.cancel()
            task.add_done_callback(_seen)


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _check_id(id: str) -> None:
    if not is_artifact_id(id):
        raise InvalidRequest(f"{id[:100]!r} is not the id of an artifact (<job>.<attempt>.<number>)")


def _asked(request: Request, type: Any) -> Any:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest('this endpoint takes a JSON object, e.g. {"id": "…"} or {"job": "…"}')
    return decode(request.data or b"{}", type, request.format if request.data else Format.JSON)
