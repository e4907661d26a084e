"""One stream of the ledger, by JetStream's own requests: nats-py's wrapper knows no atomic batches or batched reads.

Every call raises TimeoutError or NoResponders if JetStream does not answer (whatever it asked for may have happened all
the same), and ApiError if it says no.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from nats.aio.msg import Msg

from outbid_contracts.errors import OutbidError
from outbid_node.client import Bus, NoResponders, is_no_responders

ANSWER_S = 2.0
READ_AT_ONCE = 1000
"""Messages of one batched read: the event loop has other things to do between them."""

MOST_SUBJECTS = 1000
"""Subjects of one question for several last messages; the server takes 1024."""

_LOOK_S = 0.1

NAME_IN_USE = 10058
WRONG_LAST_SEQUENCE = 10071
NOT_FOUND = 10059


class ApiError(OutbidError):
    """JetStream refused. `err_code` is its number for the reason."""

    code = "jetstream"

    def __init__(self, err_code: int, description: str) -> None:
        super().__init__(description, err_code=err_code)
        self.err_code = err_code


class Stored(NamedTuple):
    """A message in the stream. `removed`: it is the marker that a purge or a delete of the key leaves."""

    seq: int
    subject: str
    data: bytes
    removed: bool


class Outgoing(NamedTuple):
    """A message to store. `expected`: the sequence of the subject's last message, 0 for none; None: whatever it is.
    `beside`: those before it stay.
    """

    subject: str
    data: bytes
    expected: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    beside: bool = False


class Stream:
    def __init__(self, bus: Bus, name: str) -> None:
        self.name = name
        self._bus = bus
        self._token = secrets.token_hex(6)
        self._batches = 0

    async def ensure(self, config: dict[str, Any], *, replace: bool = False) -> None:
        """Make the stream, or give it this configuration; `replace`: by a new one if it does not take it."""
        config = {"name": self.name, **config}
        try:
            await self.ask(f"STREAM.CREATE.{self.name}", config)
        except ApiError as error:
            if error.err_code != NAME_IN_USE:
                raise
            await self._change(config, replace)

    async def _change(self, config: dict[str, Any], replace: bool) -> None:
        try:
            await self.ask(f"STREAM.UPDATE.{self.name}", config)
        except ApiError:
            if not replace:
                raise
            await self.ask(f"STREAM.DELETE.{self.name}", {})
            await self.ask(f"STREAM.CREATE.{self.name}", config)

    async def ask(self, verb: str, body: Any) -> dict[str, Any]:
        return _told(await self._request(f"$JS.API.{verb}", json.dumps(body).encode()))

    async def store(self, messages: Sequence[Outgoing]) -> int:
        """All or none, in one go. Returns the sequence of the last; those before it have the numbers before it."""
        batch = f"{self._token}-{self._batches}" if len(messages) > 1 else ""
        self._batches += 1
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        reply = self._bus.open_inbox(partial(_fill, answer))
        try:
            for number, message in enumerate(messages, 1):
                last = number == len(messages)
                headers = _headers(message, batch, number, last)
                self._bus.post(message.subject, message.data, reply=reply if last else "", headers=headers)
                if number % 100 == 0:
                    await asyncio.sleep(0)
            return int(_told(await self._first(answer))["seq"])
        finally:
            self._bus.close_inbox(reply)

    async def store_each(self, messages: Sequence[Outgoing]) -> list[int | Exception]:
        """One by one, in order: the sequence of each, or why it was not stored. Of a few this costs less than a batch,
        for which the server makes a folder with files of its own.
        """
        return await asyncio.gather(*map(self._store_one, messages))

    async def _store_one(self, message: Outgoing) -> int | Exception:
        try:
            headers = _headers(message, "", 1, True)
            return int(_told(await self._request(message.subject, message.data, headers=headers))["seq"])
        except (TimeoutError, OutbidError) as error:
            return error

    async def add(self, subject: str, data: bytes, *, patience_s: float = ANSWER_S) -> int:
        """One message as it is, beside whatever the subject has. Returns its sequence."""
        return int(_told(await self._request(subject, data, patience_s))["seq"])

    async def purge(self, subject: str, *, before: int | None = None) -> None:
        """Remove all messages of this subject (wildcards allowed), without a trace; `before`: older than this one."""
        which = {"filter": subject} if before is None else {"filter": subject, "seq": before}
        await self.ask(f"STREAM.PURGE.{self.name}", which)

    async def read_next(self, subject: str, seq: int, count: int) -> list[Stored]:
        """Up to `count` messages of a subject from a sequence on, in order."""
        return await self._read({"seq": seq, "next_by_subj": subject, "batch": count})

    async def last(self, subject: str) -> Stored | None:
        """The last message of this subject, a marker too."""
        msg = await self._request(f"$JS.API.DIRECT.GET.{self.name}", json.dumps({"last_by_subj": subject}).encode())
        return _stored(msg)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Stored]:
        """The last messages of these subjects, for those that have any."""
        found: dict[str, Stored] = {}
        for start in range(0, len(subjects), MOST_SUBJECTS):
            part = await self._read({"multi_last": subjects[start : start + MOST_SUBJECTS]})
            found |= {message.subject: message for message in part}
        return found

    async def scan(self, subject: str, seq: int = 1) -> AsyncIterator[Stored]:
        """All messages of a subject (wildcards allowed) from a sequence on, in order. A read that fails is repeated a
        few times, so a restart of the server goes unnoticed.
        """
        failures = 0
        while True:
            try:
                part = await self._read({"seq": seq, "next_by_subj": subject, "batch": READ_AT_ONCE})
            except (TimeoutError, NoResponders):
                failures += 1
                if failures > 5:
                    raise
                await asyncio.sleep(0.2 * failures)
                continue
            failures = 0
            for message in part:
                yield message
            if not part:
                return
            seq = part[-1].seq + 1

    async def newest(self, subject: str) -> list[Stored]:
        """The last message of each subject (wildcards allowed), oldest first, without the removed ones.

        A scan may show more: a ledger killed between storing a message and removing what that replaces has both.
        """
        found: dict[str, Stored] = {}
        async for stored in self.scan(subject):
            found.pop(stored.subject, None)
            if not stored.removed:
                found[stored.subject] = stored
        return list(found.values())

    async def _read(self, body: dict[str, Any]) -> list[Stored]:
        found: list[Stored] = []
        end: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        def take(msg: Msg) -> None:
            stored = _stored(msg) if msg.headers and "Nats-Sequence" in msg.headers else None
            if stored is not None:
                found.append(stored)
            else:
                _fill(end, msg)

        reply = self._bus.open_inbox(take)
        try:
            self._bus.post(f"$JS.API.DIRECT.GET.{self.name}", json.dumps(body).encode(), reply=reply)
            _checked(await self._first(end, lambda: len(found)))
        finally:
            self._bus.close_inbox(reply)
        return found

    async def _request(
        self, subject: str, data: bytes, patience_s: float = ANSWER_S, headers: dict[str, str] | None = None
    ) -> Msg:
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        reply = self._bus.open_inbox(partial(_fill, answer))
        try:
            self._bus.post(subject, data, reply=reply, headers=headers or None)
            return await self._first(answer, patience_s=patience_s)
        finally:
            self._bus.close_inbox(reply)

    async def _first(
        self, answer: asyncio.Future[Msg], progress: Callable[[], int] = lambda: 0, patience_s: float = ANSWER_S
    ) -> Msg:
        """Wait for it, until nothing came for `patience_s`, or the connection that it was to come by is another."""
        watch = _Watch(self._bus, self.name, answer, progress, patience_s)
        try:
            msg = await answer
        finally:
            watch.end()
        if is_no_responders(msg):
            raise NoResponders(f"no JetStream answers for {self.name}")
        return msg


class _Watch:
    """Looks after an answer that may never come. Not by `asyncio.wait`: that takes two more turns of a busy loop."""

    def __init__(
        self, bus: Bus, name: str, answer: asyncio.Future[Msg], progress: Callable[[], int], patience_s: float
    ) -> None:
        self._bus = bus
        self._name = name
        self._answer = answer
        self._progress = progress
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._seen, self._until, self._lost = 0, self._loop.time() + patience_s, False
        self._timer = self._loop.call_later(_LOOK_S, self._look)

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._answer.done():
            return
        if (now := self._progress()) != self._seen:
            self._seen, self._until = now, self._loop.time() + self._patience_s
        if self._loop.time() > self._until or (self._lost and self._bus.connected):
            self._answer.set_exception(TimeoutError(f"JetStream does not answer ({self._name})"))
            return
        self._lost = self._lost or not self._bus.connected
        self._timer = self._loop.call_later(_LOOK_S, self._look)


def _fill(answer: asyncio.Future[Msg], msg: Msg) -> None:
    if not answer.done():
        answer.set_result(msg)


def bucket(prefix: str) -> dict[str, Any]:
    """Configuration of a genuine KV bucket, for `nats kv` too.

    Nothing is removed by the limit of versions, only by `Nats-Rollup` (see `_headers`) and purges: what a limit removes
    leaves no trace in the server's files, and comes back when the server is killed after what superseded it has expired
    (measured with 2.15.1: every record of 20).
    """
    return {
        "subjects": [prefix + ">"],
        "max_msgs_per_subject": 64,
        "storage": "file",
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_atomic": True,
        "allow_msg_ttl": True,
    }


def _headers(message: Outgoing, batch: str, number: int, last: bool) -> dict[str, str]:
    headers = dict(message.headers)
    if message.expected != 0 and not message.beside:
        headers.setdefault("Nats-Rollup", "sub")
    if message.expected is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(message.expected)
    if batch:
        headers["Nats-Batch-Id"] = batch
        headers["Nats-Batch-Sequence"] = str(number)
        if last:
            headers["Nats-Batch-Commit"] = "1"
    return headers


def _told(msg: Msg) -> dict[str, Any]:
    """The answer of JetStream's API. Raises ApiError."""
    told: dict[str, Any] = json.loads(msg.data or b"{}")
    if error := told.get("error"):
        raise ApiError(int(error.get("err_code", 0)), str(error.get("description", "")))
    return told


def _stored(msg: Msg) -> Stored | None:
    """A message of a direct read. Raises ApiError."""
    headers = msg.headers or {}
    if "Nats-Sequence" not in headers:
        _checked(msg)
        return None
    removed = headers.get("KV-Operation") in ("PURGE", "DEL") or "Nats-Marker-Reason" in headers
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], msg.data, removed)


def _checked(msg: Msg) -> None:
    """The status that ends a direct read: 204 its end, 404 nothing there. Raises ApiError for any other."""
    headers = msg.headers or {}
    status = headers.get("Status", "")
    if status not in ("204", "404"):
        raise ApiError(int(status) if status.isdigit() else 0, headers.get("Description", "unreadable answer"))
