"""Looking on: presence, events of jobs, auctions and log lines as they happen, over a connection lost and found."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from outbid_contracts import subjects
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest, NodeUnreachable, NoNode
from outbid_contracts.events import JobEvent
from outbid_contracts.live import WATCH_EVERY_S, AuctionHeld, LogLevel, LogLine, Watch
from outbid_contracts.messages import Presence

if TYPE_CHECKING:
    from outbid.connection import Connection
    from outbid.mesh import Mesh

SILENT_S = 5.0
"""Every node is heard each second: after so long without any, none is there, whatever the connection says."""

RETRY_S = 0.5

KEPT = 4000
"""Events that wait for a slow reader; beyond them the oldest are left out."""


class LinkLost(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is heard from the mesh; `reason` is a sentence for people."""

    reason: str


class LinkBack(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh is heard again. What happened in between was missed: ask the listings."""


LiveEvent = Presence | JobEvent | AuctionHeld | LogLine | LinkLost | LinkBack

_READ: dict[str, tuple[Any, Format]] = {
    "presence": (Presence, Format.MSGPACK),
    "job": (JobEvent, Format.JSON),
    "auction": (AuctionHeld, Format.MSGPACK),
    "log": (LogLine, Format.MSGPACK),
}
"""By the second word of the subject."""


async def live(
    mesh: Mesh, *, jobs: bool = True, auctions: bool = False, logs: LogLevel | None = None
) -> AsyncGenerator[LiveEvent, None]:
    """See `Mesh.live`."""
    mailbox = Mailbox()
    following = asyncio.create_task(_Follower(mesh, mailbox, Watch(jobs=jobs, auctions=auctions, logs=logs)).run())
    following.add_done_callback(mailbox.close)
    try:
        while True:
            yield await mailbox.next()
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({following})


class Mailbox:
    """What was heard and not read yet, undecoded. It is bounded, whatever the mesh says and however slow the reader
    is: of each node only the newest presence is kept, of the rest the newest KEPT.
    """

    def __init__(self) -> None:
        self._links: deque[LiveEvent] = deque(maxlen=2)
        self._presence: dict[str, bytes] = {}
        self._rest: deque[tuple[str, bytes]] = deque(maxlen=KEPT)
        self._error: BaseException | None = None
        self._lost = False
        self._filled = asyncio.Event()

    def put(self, subject: str, data: bytes) -> None:
        if subject.startswith("mesh.presence."):
            self._presence[subject] = data
        else:
            self._rest.append((subject, data))
        self._filled.set()

    def link(self, trouble: str) -> None:
        """The connection is there ("") or not (why); told when that changes."""
        if bool(trouble) == self._lost:
            return
        self._lost = bool(trouble)
        self._links.append(LinkLost(reason=trouble) if trouble else LinkBack())
        self._filled.set()

    def close(self, task: asyncio.Task[None]) -> None:
        """Nothing comes any more: `next` raises why."""
        self._error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._filled.set()

    async def next(self) -> LiveEvent:
        while True:
            if self._links:
                return self._links.popleft()
            if self._presence or self._rest:
                subject, data = self._take()
                if (event := _read(subject, data)) is not None:
                    return event
            elif self._error is not None:
                raise self._error
            else:
                self._filled.clear()
                await self._filled.wait()

    def _take(self) -> tuple[str, bytes]:
        if self._presence:
            subject = next(iter(self._presence))
            return subject, self._presence.pop(subject)
        return self._rest.popleft()


def _read(subject: str, data: bytes) -> LiveEvent | None:
    """None for what this version does not understand."""
    type, format = _READ[subject.split(".")[1]]
    with suppress(InvalidRequest):
        event: LiveEvent = decode(data, type, format)
        return event
    return None


class _Follower:
    """Keeps a mailbox filled, over any number of connections, and says every WATCH_EVERY_S what is wanted."""

    def __init__(self, mesh: Mesh, mailbox: Mailbox, watch: Watch) -> None:
        self._mesh = mesh
        self._mailbox = mailbox
        self._watch = watch
        self._subjects = _subjects(watch)
        self._heard_s = 0.0
        self._said_s = 0.0
        self._interrupted = False
        self._moved = asyncio.Event()
        """The connection was interrupted, closed, or came back."""

    async def run(self) -> None:
        """Until cancelled. Raises AccessRefused, and RuntimeError when the mesh is closed."""
        while True:
            try:
                connection = await self._mesh.connected()
                async with connection.hearing(self._subjects, self._hear, self._link):
                    self._link("")
                    await self._until_closed(connection)
            except (NodeUnreachable, NoNode) as error:
                self._mailbox.link(error.message)
            await asyncio.sleep(RETRY_S)

    async def _until_closed(self, connection: Connection) -> None:
        while not connection.closed:
            await self._say(connection)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._moved.wait()
            self._moved.clear()
            if time.monotonic() - self._heard_s > SILENT_S:
                self._mailbox.link(f"no node was heard for {SILENT_S:.0f} s")

    async def _say(self, connection: Connection) -> None:
        if self._wants and time.monotonic() - self._said_s >= WATCH_EVERY_S:
            await connection.post(subjects.WATCH, self._watch)
            self._said_s = time.monotonic()

    @property
    def _wants(self) -> bool:
        return self._watch != Watch()

    def _hear(self, subject: str, data: bytes) -> None:
        self._heard_s = time.monotonic()
        self._mailbox.put(subject, data)
        if not self._interrupted:  # else it had arrived before
            self._mailbox.link("")

    def _link(self, trouble: str) -> None:
        """Of the connection. One that is there again is no sign of life yet, but gets the time for one."""
        self._interrupted = bool(trouble)
        self._heard_s, self._said_s = time.monotonic(), 0.0
        self._mailbox.link(trouble)
        self._moved.set()


def _subjects(watch: Watch) -> Sequence[str]:
    wanted = [subjects.PRESENCE_ALL]
    wanted += [subjects.JOB_EVENT_ALL] if watch.jobs else []
    wanted += [subjects.AUCTION_ALL] if watch.auctions else []
    wanted += [subjects.LOG_ALL] if watch.logs else []
    return wanted
