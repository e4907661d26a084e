"""A NATS micro service (ADR-32): endpoints, and PING, INFO, STATS so that `nats micro ls|info|stats` see the node.

nats-py's own service answers the requests of one endpoint one after the other, and its `stop()` drops requests in
flight; here they go on beside each other, its statistics are its own, and `drain` waits for what is under way
(docs/decisions/0003-own-micro-service.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError

from outbid_contracts.codec import Format, encode, format_of
from outbid_contracts.errors import Draining, InvalidRequest, OutbidError, PayloadTooLarge
from outbid_contracts.roles import is_inbox
from outbid_node.bus.config_text import MAX_PAYLOAD_MIB
from outbid_node.client import Bus

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = MAX_PAYLOAD_MIB * 2**20 - 4096
"""What fits one message of the bus beside its headers."""


class Request:
    """One request as it came in. `format` is how its body is encoded; replies mirror it (JSON for bare text)."""

    __slots__ = ("_bus", "data", "format", "headers", "reply")

    def __init__(self, bus: Bus, msg: Msg) -> None:
        self._bus = bus
        self.data = msg.data
        self.headers = msg.headers or {}
        self.reply = msg.reply if is_inbox(msg.reply) else ""
        self.format = Format.JSON

    def read_format(self) -> Format:
        """Take the format from Content-Type or the body itself. Raises InvalidRequest for an unknown Content-Type."""
        self.format = format_of(self.headers.get("Content-Type"), self.data)
        return self.format

    @property
    def reply_format(self) -> Format:
        return Format.MSGPACK if self.format is Format.MSGPACK else Format.JSON

    def respond(self, message: Any) -> None:
        if self.reply:
            headers = {"Content-Type": Format.MSGPACK.value} if self.format is Format.MSGPACK else None
            self._bus.post(self.reply, self.encoded(message), headers=headers)

    def encoded(self, message: Any) -> bytes:
        """`message` in the caller's format. Raises PayloadTooLarge if the bus would not carry it."""
        data = encode(message, self.reply_format)
        if len(data) > MAX_REPLY_BYTES:
            raise PayloadTooLarge(f"the answer has {len(data) / 2**20:.1f} MiB; the bus carries {MAX_PAYLOAD_MIB} MiB")
        return data

    def respond_error(self, error: OutbidError) -> None:
        if self.reply:
            self._bus.post(
                self.reply, encode(error.body(), self.reply_format), headers=error_headers(error, self.reply_format)
            )

    def end_stream(self) -> None:
        """The empty last message. Nothing can be said to the caller after it."""
        if self.reply:
            self._bus.post(self.reply, b"")
            self.reply = ""


def error_headers(error: OutbidError, format: Format) -> dict[str, str]:
    line = " ".join(error.message.split())[:500]
    return {
        "Nats-Service-Error": line.encode("ascii", "replace").decode(),
        "Nats-Service-Error-Code": str(error.status),
        "Outbid-Error": error.code,
        "Content-Type": format.value,
    }


def semantic(version: str) -> str:
    """A Python version as NATS tools insist on (semver): 0.2.0rc1 becomes 0.2.0-rc1, 0.2.0.dev3 0.2.0-dev3."""
    return re.sub(r"^(\d+\.\d+\.\d+)\.?(?=[a-z])", r"\1-", version)


class Underway(NamedTuple):
    """What a request waits for; `answer` is called with its result, and may raise. A task that does nothing but wait
    would cost as much as a short job's auction.
    """

    future: asyncio.Future[Any]
    answer: Callable[[Any], None]


Handler = Callable[[Request], Coroutine[Any, Any, None] | Underway]
"""Called at once, so what is no coroutine must return soon."""


@dataclass
class Endpoint:
    """An endpoint and its statistics (times in nanoseconds, as ADR-32 has them)."""

    name: str
    subject: str
    handler: Handler
    queue: str
    metadata: Mapping[str, str]
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0
    subscription: Subscription | None = None

    def info(self) -> dict[str, Any]:
        return {"name": self.name, "subject": self.subject, "queue_group": self.queue, "metadata": dict(self.metadata)}

    def stats(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "subject": self.subject,
            "queue_group": self.queue,
            "num_requests": self.num_requests,
            "num_errors": self.num_errors,
            "last_error": self.last_error,
            "processing_time": self.processing_time,
            "average_processing_time": self.processing_time // max(1, self.num_requests),
        }


@dataclass
class Service:
    """One service of this node. `add` endpoints, then `start`; `drain` stops taking requests and waits for the rest."""

    bus: Bus
    name: str
    id: str
    version: str
    description: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    endpoints: list[Endpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._tasks: set[asyncio.Task[None]] = set()
        self._underway: set[asyncio.Future[Any]] = set()
        self._subscriptions: list[Subscription] = []
        self.draining = False

    def add(
        self, name: str, subject: str, handler: Handler, *, queue: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.endpoints.append(Endpoint(name, subject, handler, queue, metadata or {}))

    async def start(self) -> None:
        for endpoint in self.endpoints:
            endpoint.subscription = await self.bus.subscribe(
                endpoint.subject, self._receiver(endpoint), queue=endpoint.queue
            )
        for verb, body in (("PING", self._ping), ("INFO", self.info), ("STATS", self.stats)):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{self.name}", f"$SRV.{verb}.{self.name}.{self.id}"):
                self._subscriptions.append(await self.bus.subscribe(subject, self._responder(body)))

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests, wait up to `timeout_s` for those under way; returns how many were given up."""
        self.draining = True
        subscribed = [endpoint.subscription for endpoint in self.endpoints if endpoint.subscription]
        with contextlib.suppress(ConnectionClosedError):
            for subscription in [*subscribed, *self._subscriptions]:
                await subscription.unsubscribe()
        if not self._tasks and not self._underway:
            return 0
        _, pending = await asyncio.wait({*self._tasks, *self._underway}, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        return len(pending)

    def _receiver(self, endpoint: Endpoint) -> Callable[[Msg], Awaitable[None]]:
        async def receive(msg: Msg) -> None:
            self._handle(endpoint, Request(self.bus, msg), time.perf_counter_ns())

        return receive

    def _handle(self, endpoint: Endpoint, request: Request, started: int) -> None:
        endpoint.num_requests += 1
        try:
            if self.draining:
                raise Draining
            begun = endpoint.handler(request)
        except Exception as error:
            self._fail(endpoint, request, error)
            return
        if isinstance(begun, Underway):
            self._underway.add(begun.future)
            begun.future.add_done_callback(partial(self._answer, endpoint, request, started, begun.answer))
        else:
            task = asyncio.create_task(self._complete(endpoint, request, started, begun))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _answer(
        self,
        endpoint: Endpoint,
        request: Request,
        started: int,
        answer: Callable[[Any], None],
        future: asyncio.Future[Any],
    ) -> None:
        self._underway.discard(future)
        try:
            if not future.cancelled():
                answer(future.result())
        except Exception as error:
            self._fail(endpoint, request, error)
        endpoint.processing_time += time.perf_counter_ns() - started

    async def _complete(
        self, endpoint: Endpoint, request: Request, started: int, rest: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await rest
        except Exception as error:
            self._fail(endpoint, request, error)
        finally:
            endpoint.processing_time += time.perf_counter_ns() - started

    def _fail(self, endpoint: Endpoint, request: Request, error: Exception) -> None:
        if not isinstance(error, OutbidError):
            log.error("endpoint %s failed", endpoint.subject, exc_info=error, extra={"action": "endpoint_failed"})
            error = OutbidError(f"internal error: {type(error).__name__}: {error}")
        endpoint.num_errors += 1
        endpoint.last_error = error.message[:500]
        if isinstance(error, InvalidRequest):
            log.info("refused a request: %s", error.message[:200], extra={"action": "request_refused"})
        request.respond_error(error)

    def _responder(self, body: Callable[[], dict[str, Any]]) -> Callable[[Msg], Awaitable[None]]:
        async def respond(msg: Msg) -> None:
            if is_inbox(msg.reply):
                self.bus.post(msg.reply, msgspec.json.encode(body()))

        return respond

    def _identity(self) -> dict[str, Any]:
        return {"name": self.name, "id": self.id, "version": semantic(self.version), "metadata": dict(self.metadata)}

    def _ping(self) -> dict[str, Any]:
        return {"type": "io.nats.micro.v1.ping_response", **self._identity()}

    def info(self) -> dict[str, Any]:
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._identity(),
            "description": self.description,
            "endpoints": [endpoint.info() for endpoint in self.endpoints],
        }

    def stats(self) -> dict[str, Any]:
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity(),
            "started": self._started,
            "endpoints": [endpoint.stats() for endpoint in self.endpoints],
        }
