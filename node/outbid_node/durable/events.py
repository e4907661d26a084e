"""What happened to durable jobs, kept for a day, so that whoever comes later can still watch."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from outbid_contracts import subjects
from outbid_contracts.durable import EVENTS_BYTES, EVENTS_KEPT_S
from outbid_contracts.errors import StorageFailed
from outbid_contracts.events import Ended, Finished, JobEvent
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.roles import INBOX
from outbid_node.client import Bus, NoResponders
from outbid_node.durable.stream import ApiError, Stream

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
"""JetStream says so often that a watch goes on; without a word for three times that, it is begun again."""

LINGER_S = 1.0
"""How long after its end a job's last events may come."""

RETRY_S = 0.2
GIVE_UP_S = 5.0
"""A watch of a job that has ended waits that long for a ledger that does not answer."""

NO_ANSWER = (TimeoutError, NoResponders, ApiError)

_decoder: msgspec.json.Decoder[JobEvent] = msgspec.json.Decoder(JobEvent)


class Place(NamedTuple):
    """Where in the stream a watch is: the last message it had. `lost`: the ledger forgot that one in a crash and gave
    its number to another, so the place is the moment only.
    """

    seq: int = 0
    at_ns: int = 0
    lost: bool = False


class Again(Exception):
    """The consumer is gone or something is missing: begin again at this place."""


class Events:
    """The stream `EVENTS_<node>`: bounded, not synced, so after a crash of the ledger its last moments may be missing.
    The truth about a job is its record.
    """

    def __init__(self, bus: Bus, node: NodeId) -> None:
        self._bus = bus
        self._node = node
        self._stream = Stream(bus, f"EVENTS_{node}")

    async def open(self) -> None:
        """Make the stream. Raises StorageFailed; what is posted until it has worked is heard live only."""
        try:
            await self._stream.ensure(_config(self._node), replace=True)
        except NO_ANSWER as error:
            raise StorageFailed(f"events of durable jobs cannot be kept on this node: {error}") from error

    def post(self, id: JobId, event: JobEvent) -> None:
        """Tell all who watch. Of a result only that there is one: it is in the record."""
        if isinstance(event, Finished):
            event = msgspec.structs.replace(event, result={})
        self._bus.post(subjects.events(self._node, id), msgspec.json.encode(event))

    async def replay(self, id: JobId) -> list[JobEvent]:
        """What was posted so far, as far as it is kept, the end too. Raises StorageFailed."""
        try:
            stored = [message.data async for message in self._stream.scan(subjects.events(self._node, id))]
        except NO_ANSWER as error:
            raise StorageFailed(f"the events of job {id} cannot be read: {error}") from error
        return [event for event in map(_decoded, stored) if event is not None]

    async def watch(self, id: JobId, emit: Callable[[JobEvent], None], ended: asyncio.Future[Any]) -> None:
        """Emit what was posted so far, then what comes, each event once and in order, until the job's end, which is
        not emitted. Without one in the stream it is over LINGER_S after `ended` is done (it is never cancelled here).

        It lives through restarts of the ledger. What `emit` raises ends it.
        """
        place, loop, failing_since = Place(), asyncio.get_running_loop(), math.inf
        while True:
            reader = _Reader(self._bus, self._stream, subjects.events(self._node, id), place, ended)
            try:
                await reader.open()
                failing_since = math.inf
                return await reader.pump(emit)
            except (Again, *NO_ANSWER) as error:
                log.debug("watching %s: %s", id, error, extra={"action": "watch_again", "job": id})
            finally:
                await reader.close()
            place = reader.place
            failing_since = min(failing_since, loop.time())
            if ended.done() and loop.time() - failing_since > GIVE_UP_S:
                return None
            await asyncio.sleep(RETRY_S)


class _Reader:
    """One ephemeral consumer of one subject, from a place on. It lives until it falls silent or misses something."""

    def __init__(self, bus: Bus, stream: Stream, subject: str, place: Place, ended: asyncio.Future[Any]) -> None:
        self.place = place
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._ended = ended
        self._name = ""
        self._got: deque[Msg] = deque()
        self._news = asyncio.Event()
        self._heard: Subscription | None = None
        self._delivered = 0
        self._ended_at = math.inf

    async def open(self) -> None:
        """From the last message it had, to see whether that is still the same one."""
        stream = self._stream.name
        if self.place.seq and not self.place.lost:
            state = (await self._stream.ask(f"STREAM.INFO.{stream}", {}))["state"]
            if state["last_seq"] < self.place.seq:
                self.place = self.place._replace(lost=True)
        inbox = f"{INBOX}.{secrets.token_hex(12)}"  # of its own: what a consumer sends keeps its subject
        self._heard = await self._bus.subscribe(inbox, self._take)
        config = {
            "deliver_subject": inbox,
            "filter_subject": self._subject,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": 1 if self.place.lost else max(1, self.place.seq),
            "ack_policy": "none",
            "replay_policy": "instant",
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
            "flow_control": True,
            "mem_storage": True,
        }
        made = await self._stream.ask(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        self._name = made["name"]

    async def close(self) -> None:
        if self._heard is not None:
            with suppress(nats.errors.Error):
                await self._heard.unsubscribe()
        if self._name and self._bus.connected:
            with suppress(*NO_ANSWER):
                await self._stream.ask(f"CONSUMER.DELETE.{self._stream.name}.{self._name}", {})

    async def pump(self, emit: Callable[[JobEvent], None]) -> None:
        """Returns at the job's end. Raises Again."""
        self._ended.add_done_callback(self._wake)
        try:
            while True:
                while self._got:
                    if self._handle(self._got.popleft(), emit):
                        return
                self._news.clear()
                await self._hear()
        finally:
            self._ended.remove_done_callback(self._wake)

    async def _hear(self) -> None:
        try:
            async with asyncio.timeout(3 * HEARTBEAT_S):
                await self._news.wait()
        except TimeoutError:
            raise Again("not a word") from None
        if self._ended.done():
            self._ended_at = min(self._ended_at, asyncio.get_running_loop().time())

    async def _take(self, msg: Msg) -> None:
        self._got.append(msg)
        self._news.set()

    def _wake(self, ended: asyncio.Future[Any]) -> None:
        self._news.set()

    def _handle(self, msg: Msg, emit: Callable[[JobEvent], None]) -> bool:
        """Whether that was the end."""
        if msg.headers and "Status" in msg.headers:
            return self._handle_status(msg)
        seq, delivered, at_ns = _position(msg)
        if delivered != self._delivered + 1:
            raise Again(f"message {delivered} came after {self._delivered}")
        self._delivered = delivered
        if self._had(seq, at_ns):
            return False
        self.place = Place(seq, at_ns)
        if self._ended_at < math.inf:
            self._ended_at = asyncio.get_running_loop().time()
        event = _decoded(msg.data)
        if isinstance(event, Finished | Ended):
            return True
        if event is not None:
            emit(event)
        return False

    def _had(self, seq: int, at_ns: int) -> bool:
        """Whether it was delivered before, by an earlier consumer."""
        if self.place.lost:
            return at_ns <= self.place.at_ns
        if seq == self.place.seq and at_ns != self.place.at_ns:
            self.place = self.place._replace(lost=True)
            raise Again("the ledger forgot the last events in a crash")
        return seq == self.place.seq

    def _handle_status(self, msg: Msg) -> bool:
        """A word of the server between messages: a heartbeat, or its question whether it may go on sending."""
        headers = msg.headers or {}
        if msg.reply:
            self._bus.post(msg.reply, b"")
            return False
        if stalled := headers.get("Nats-Consumer-Stalled"):
            self._bus.post(stalled, b"")
        if headers["Status"] != "100":
            raise Again(headers.get("Description", "the consumer is gone"))
        if int(headers.get("Nats-Last-Consumer", self._delivered)) != self._delivered:
            raise Again("a message is missing")
        return asyncio.get_running_loop().time() - self._ended_at >= LINGER_S


def _position(msg: Msg) -> tuple[int, int, int]:
    """Sequence in the stream, number of the delivery, and Unix time in ns, from the subject to acknowledge it at."""
    parts = msg.reply.split(".")  # $JS.ACK.<stream>.<consumer>.<tries>.<stream seq>.<number>.<time>.<pending>
    if len(parts) > 9:  # version 2: $JS.ACK.<domain>.<account>.<stream>.…
        parts = parts[:2] + parts[4:]
    return int(parts[5]), int(parts[6]), int(parts[7])


def _decoded(data: bytes) -> JobEvent | None:
    """None for one that cannot be read, as a newer node may send."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoder.decode(data)
    return None


def _config(node: NodeId) -> dict[str, Any]:
    return {
        "subjects": [subjects.events(node, JobId("*"))],
        "storage": "file",
        "discard": "old",
        "max_age": int(EVENTS_KEPT_S * 1e9),
        "max_bytes": EVENTS_BYTES,
        "allow_direct": True,
        "no_ack": True,
        "persist_mode": "async",
    }
