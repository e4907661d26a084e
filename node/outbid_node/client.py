"""The daemon's connection to its ledger: publish, subscribe, and requests over one shared reply inbox.

nats-py's own `request` costs two to three times as much as one wildcard inbox with a table of futures
(docs/benchmarks.md), and has no request-many; this is all we add to it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import ErrorBody, NodeUnreachable, OutbidError, from_body

log = logging.getLogger(__name__)
Handler = Callable[[Msg], Awaitable[None]]

OUTGOING_BYTES = 64 * 1024 * 1024
"""Unsent bytes the client holds, also while the ledger is away."""

MAX_SUBJECTS = 2048
"""Characters of subject and reply together; above the server's 4096-byte line it would hang up on us."""

PENDING_BYTES = 256 * 1024 * 1024
"""Unread bytes per subscription before the client drops messages."""


class NoResponders(NodeUnreachable):
    """Nobody listens on that subject: the node is gone."""


class Bus:
    """One NATS connection. Calls raise NoResponders at once if nobody listens, TimeoutError if nobody answers in
    time.
    """

    def __init__(self, name: str, inbox: str = "_INBOX") -> None:
        """`inbox`: where this user may receive replies (`roles.inbox_prefix`); the node's own user may anywhere."""
        self._name = name
        self._nc: Client = Client()
        self._inbox = f"{inbox}.{secrets.token_hex(8)}"
        self._waiting: dict[str, Callable[[Msg], None]] = {}
        self._next = 0
        self.on_reconnect: Callable[[], Awaitable[None]] | None = None
        self.on_closed: Callable[[], None] = lambda: None
        """The client gave up for good, though nobody asked it to close."""
        self._closing = False
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def connected(self) -> bool:
        return self._nc.is_connected

    async def connect(self, url: str, creds: Path) -> None:
        self._nc = await nats.connect(
            url,
            name=self._name,
            user_credentials=str(creds),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,
            ping_interval=10,
            connect_timeout=2,
            pending_size=OUTGOING_BYTES,
            error_cb=self._on_error,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
        )
        await self.subscribe(f"{self._inbox}.*", self._on_reply)

    async def close(self) -> None:
        self._closing = True
        if not self._nc.is_closed:
            try:
                async with asyncio.timeout(0.5):
                    await self._nc.flush()
            except Exception as error:
                log.debug("flush before closing: %s", error, extra={"action": "bus_flush_failed"})
            await self._nc.close()

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        return await self._nc.subscribe(
            subject, queue=queue, cb=handler, pending_msgs_limit=1_000_000, pending_bytes_limit=PENDING_BYTES
        )

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that nobody waits for; a failure is logged."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("%s", error, exc_info=error, extra={"action": "task_failed"})

    async def flush(self) -> None:
        """Returns when the ledger has taken in all that was sent, subscriptions too. Twice, because the first ping may
        overtake what is still in nats-py's buffer.
        """
        await self._nc.flush()
        await self._nc.flush()

    def post(self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, Any] | None = None) -> None:
        """Publish, from any code on the loop; what is posted first is sent first. A failure is logged, not raised.

        nats-py's `publish` only appends to its buffer and suspends solely when that is full, so it is run to its end
        here;
        with the buffer nearly full a task waits for room instead.
        """
        if len(subject) + len(reply) > MAX_SUBJECTS:
            log.warning("not sent to %.60s…: the subject is too long", subject, extra={"action": "publish_failed"})
            return
        publishing = self._nc.publish(subject, data, reply=reply, headers=headers)
        if self._nc.pending_data_size + len(data) + 1024 > OUTGOING_BYTES:
            asyncio.ensure_future(publishing).add_done_callback(_log_failure)
            return
        try:
            publishing.send(None)
        except StopIteration:
            return
        except Exception as error:
            log.warning("not sent to %s: %s", subject, error or type(error), extra={"action": "publish_failed"})
        finally:
            publishing.close()

    async def call(self, subject: str, message: Any, type: Any, *, timeout_s: float) -> Any:
        """Send `message` (MessagePack), wait for one reply decoded as `type`; a service error in it is raised."""
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        reply = self.open_inbox(lambda msg: None if future.done() else future.set_result(msg))
        try:
            self.post(subject, encode(message), reply=reply)
            async with asyncio.timeout(timeout_s):
                msg = await future
        finally:
            self.close_inbox(reply)
        return reply_of(msg, type)

    def open_inbox(self, on_message: Callable[[Msg], Any]) -> str:
        """A reply subject whose messages go to `on_message` until `close_inbox`."""
        self._next += 1
        token = str(self._next)
        self._waiting[token] = on_message
        return f"{self._inbox}.{token}"

    def close_inbox(self, reply: str) -> None:
        self._waiting.pop(reply[len(self._inbox) + 1 :], None)

    async def _on_reply(self, msg: Msg) -> None:
        waiting = self._waiting.get(msg.subject[len(self._inbox) + 1 :])
        if waiting is not None:
            waiting(msg)

    async def _on_error(self, error: Exception) -> None:
        log.warning("bus: %s", error or type(error).__name__, extra={"action": "bus_error"})

    async def _closed(self) -> None:
        if not self._closing:
            self.on_closed()

    async def _reconnected(self) -> None:
        log.info("connected to the ledger again", extra={"action": "bus_reconnected"})
        if self.on_reconnect is not None:
            await self.on_reconnect()


def _log_failure(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.warning("not sent: %s", error, extra={"action": "publish_failed"})


def is_no_responders(msg: Msg) -> bool:
    return not msg.data and msg.headers is not None and msg.headers.get("Status") == "503"


def reply_of(msg: Msg, type: Any) -> Any:
    """Decode a reply. Raises NoResponders, the OutbidError it carries, or InvalidRequest if it is not readable."""
    if msg.headers:
        if is_no_responders(msg):
            raise NoResponders
        if "Outbid-Error" in msg.headers:
            raise from_body(decode(msg.data, ErrorBody))
        if "Nats-Service-Error" in msg.headers:
            raise OutbidError(msg.headers["Nats-Service-Error"])
    return decode(msg.data, type)
