"""A face's connection to a node: requests, and streams that end with an empty message.

nats-py is loaded when the first one is opened: it is most of what importing this package would take.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from outbid_contracts.codec import Format, decode, encode
from outbid_contracts.errors import (
    ErrorBody,
    NodeUnreachable,
    NoNode,
    OutbidError,
    PayloadTooLarge,
    UnknownCapability,
    from_body,
)
from outbid_contracts.places import NODE_FILE, LocalNode, state_dir
from outbid_contracts.roles import inbox_prefix

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

SURE = 2
"""Refusals to believe. A server that takes up a new configuration refuses everyone for some milliseconds."""

CLOSE_TIMEOUT_S = 2.0

LAST_WORD_S = 0.1
"""How long after a connection broke the reason may become known."""

PING_S = 10
"""A server that leaves two of them unanswered is away: nothing else tells of a cable pulled, or of a night asleep."""

_HEADERS = {"Content-Type": Format.MSGPACK.value}
_EVERY_NODE = ("mesh.jobs.", "mesh.nodes.", "mesh.models.", "mesh.artifacts.", "mesh.history.", "mesh.admin.")
"""Every node answers these: that nobody does says something about the node, not about what was asked."""


def local_node(state: str | os.PathLike[str] | None = None) -> LocalNode:
    """The node running on this machine with that state folder. Raises NoNode if there is none."""
    file: Path = state_dir(state) / NODE_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=LocalNode)
    except FileNotFoundError as error:
        raise NoNode(
            f"no Outbid node runs with state folder {file.parent}; start one with `outbid up`, or name another folder "
            "with --state DIR or OUTBID_STATE"
        ) from error
    except (OSError, msgspec.DecodeError) as error:
        raise NoNode(f"{file} cannot be read ({error}); start the node again with `outbid up`") from error


class AccessRefused(OutbidError):
    """These credentials may not do that; `outbid creds` on a machine of the mesh makes others."""

    code = "access_refused"
    status = 403


class _Exchange(NamedTuple):
    """One request that waits for its replies, or for the reason why there will be none: `tell` hears of both."""

    subject: str
    tell: Callable[[Msg | OutbidError], None]


class _Listener:
    """Whoever listens to subjects, and what of these the server does not allow."""

    def __init__(self, subjects: Sequence[str], on_link: Callable[[str], None]) -> None:
        self.subjects = subjects
        self.on_link = on_link
        self.refused: list[str] = []


class Connection:
    """NATS for faces. Errors of the mesh come out as OutbidError."""

    def __init__(self, url: str, creds: str | os.PathLike[str] | None = None) -> None:
        """`creds`: a credentials file; without one the node lets nobody in."""
        self.url = url
        self._creds = creds or None
        self._client: Client | None = None
        self._inbox = ""
        self._numbers = itertools.count()
        self._open: dict[str, _Exchange] = {}
        self._listeners: set[_Listener] = set()
        self._refusals = 0
        self._refused = asyncio.Event()

    async def open(self) -> None:
        """Raises NodeUnreachable if nothing listens there, AccessRefused if it does not let us in (nats-py itself
        would try on in silence).
        """
        nats = await asyncio.to_thread(importlib.import_module, "nats")
        options = self._credentials()
        try:
            await self._knock()
            await self._connect(options)
        except (nats.errors.NoServersError, OSError, TimeoutError) as error:
            raise NodeUnreachable(f"nothing answers at {self.url}; start the node with `outbid up`") from error
        except nats.errors.Error as error:  # it let us in and hung up at once, as while its node starts
            raise NodeUnreachable(f"{self.url} hung up: {error}") from error

    def _credentials(self) -> dict[str, Any]:
        if self._creds is None:
            return {}
        try:
            prefix = inbox_prefix(Path(self._creds).read_text())
        except (OSError, ValueError) as error:
            raise AccessRefused(f"the credentials {self._creds} cannot be used: {error}") from error
        return {"user_credentials": str(self._creds), "inbox_prefix": prefix}

    async def _connect(self, options: dict[str, Any]) -> None:
        import nats

        connecting = asyncio.ensure_future(
            nats.connect(
                self.url,
                name="outbid sdk",
                max_reconnect_attempts=40,
                reconnect_time_wait=0.25,
                connect_timeout=2,
                ping_interval=PING_S,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                pending_size=64 * 1024 * 1024,
                **options,
            )
        )
        refused = asyncio.ensure_future(self._refused.wait())
        either: list[asyncio.Future[Any]] = [connecting, refused]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        refused.cancel()
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait([connecting])
            raise AccessRefused(f"{self.url} does not let {self._creds or 'callers without credentials'} in")
        self._client = connecting.result()
        self._inbox = self._nc.new_inbox()
        await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_reply)

    async def _knock(self) -> None:
        address = urlsplit(self.url if "//" in self.url else f"nats://{self.url}")
        async with asyncio.timeout(3):
            _, writer = await asyncio.open_connection(address.hostname, address.port or 4222)
        writer.close()

    @property
    def closed(self) -> bool:
        """Given up for good, after ten seconds without the server or at its word."""
        return self._client is not None and self._client.is_closed

    @property
    def _nc(self) -> Client:
        if self._client is None:
            raise NodeUnreachable(f"the connection to {self.url} is not open")
        return self._client

    async def close(self) -> None:
        if self._client is not None and not self._client.is_closed:
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._nc.close()

    async def _on_error(self, error: Exception) -> None:
        """nats-py logs its reconnection attempts here, which nobody needs; but a refusal is an answer."""
        text = str(error).lower()
        if "authorization violation" in text:
            self._refusals += 1
            if self._refusals >= SURE:
                self._refused.set()
        for exchange in [one for one in self._open.values() if f'publish to "{one.subject.lower()}"' in text]:
            exchange.tell(AccessRefused(f"these credentials do not allow {exchange.subject}"))
        for listener in self._listeners:
            listener.refused += [one for one in listener.subjects if f'subscription to "{one.lower()}"' in text]

    async def _on_disconnected(self) -> None:
        """What was on its way may be lost, so nobody shall wait for it. A moment later: the server may have said why,
        and then `_on_closed` tells it.
        """
        self._tell_listeners(f"the connection to {self.url} was interrupted")
        asyncio.get_running_loop().call_later(LAST_WORD_S, self._interrupt, list(self._open.values()))

    async def _on_reconnected(self) -> None:
        self._tell_listeners("")

    def _tell_listeners(self, trouble: str) -> None:
        for listener in list(self._listeners):
            listener.on_link(trouble)

    def _interrupt(self, exchanges: Sequence[_Exchange]) -> None:
        for exchange in exchanges:
            exchange.tell(NodeUnreachable(f"the connection to {self.url} was interrupted"))

    async def _on_closed(self) -> None:
        why = str(self._client.last_error if self._client else "").lower()
        lost: OutbidError = NodeUnreachable(f"the connection to {self.url} is lost")
        if "authentication" in why or "authorization" in why:
            lost = AccessRefused(f"these credentials are no longer valid ({why.removeprefix('nats: ')})")
        for exchange in self._open.values():
            exchange.tell(lost)
        self._tell_listeners(lost.message)

    async def request(self, subject: str, message: Any, type: Any, *, timeout_s: float | None) -> Any:
        """One request, one reply. `timeout_s` None waits as long as it takes."""
        answer: asyncio.Future[Msg | OutbidError] = asyncio.get_running_loop().create_future()
        inbox = self._listen(subject, lambda arrived: None if answer.done() else answer.set_result(arrived))
        try:
            await self._send(subject, message, inbox)
            async with asyncio.timeout(timeout_s):
                msg = _arrived(await answer)
        except TimeoutError as error:
            raise NodeUnreachable(f"no answer to {subject} within {timeout_s:g} s") from error
        finally:
            del self._open[inbox]
        _raise_error(msg, subject)
        return decode(msg.data, type)

    async def stream(
        self,
        subject: str,
        message: Any,
        type: Any,
        *,
        idle_timeout_s: float | None,
        check: Callable[[], Awaitable[None]] | None = None,
        more: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[Any, None]:
        """One request, many replies until the empty one. `idle_timeout_s` bounds the wait for each; with `check` it is
        only how often that is asked, which raises what the wait ends with. `more`, asked at the empty one, says whether
        to listen on all the same: what another node sends may come after it.
        """
        async with aclosing(self._exchange(subject, message, idle_timeout_s, check)) as replies:
            async for msg in replies:
                _raise_error(msg, subject)
                if msg.data:
                    yield decode(msg.data, type)
                elif not more():
                    return

    async def pieces(
        self, subject: str, message: Any, *, idle_timeout_s: float
    ) -> AsyncGenerator[tuple[Mapping[str, str], bytes], None]:
        """One request (bytes go as they are), and its raw replies with their headers, the empty last one too."""
        async with aclosing(self._exchange(subject, message, idle_timeout_s)) as replies:
            async for msg in replies:
                _raise_error(msg, subject)
                yield msg.headers or {}, msg.data
                if not msg.data:
                    return

    async def replies(self, subject: str, *, idle_timeout_s: float) -> AsyncGenerator[bytes, None]:
        """What all who hear `subject` answer to an empty request, until nobody did for `idle_timeout_s`."""
        with suppress(NodeUnreachable):
            async with aclosing(self._exchange(subject, {}, idle_timeout_s)) as replies:
                async for msg in replies:
                    yield msg.data

    @asynccontextmanager
    async def hearing(
        self, subjects: Sequence[str], on_message: Callable[[str, bytes], None], on_link: Callable[[str], None]
    ) -> AsyncIterator[None]:
        """Subscribed to these subjects inside. `on_link` gets a sentence when the connection is interrupted or lost,
        and "" when it is there again with the same subscriptions. Raises AccessRefused, NodeUnreachable.
        """

        import nats

        async def arrived(msg: Msg) -> None:
            on_message(msg.subject, msg.data)

        listener = _Listener(subjects, on_link)
        self._listeners.add(listener)
        subscribed: list[Subscription] = []
        try:
            try:
                for subject in subjects:
                    subscribed.append(await self._nc.subscribe(subject, cb=arrived))
                await self._until_taken_in()
            except (nats.errors.Error, OSError) as error:
                raise NodeUnreachable(f"the connection to {self.url} is lost") from error
            if listener.refused:
                raise AccessRefused(f"these credentials do not allow to hear {', '.join(listener.refused)}")
            yield
        finally:
            self._listeners.discard(listener)
            with suppress(nats.errors.Error, OSError):
                for subscription in subscribed:
                    await subscription.unsubscribe()

    async def _until_taken_in(self) -> None:
        """Twice: the first ping may overtake what nats-py holds back."""
        await self._nc.flush()
        await self._nc.flush()

    async def post(self, subject: str, message: Any) -> None:
        """To whoever hears it, without an answer. Raises NodeUnreachable."""
        await self._send(subject, message, "")

    async def _exchange(
        self,
        subject: str,
        message: Any,
        timeout_s: float | None,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[Msg, None]:
        waiting: asyncio.Queue[Msg | OutbidError] = asyncio.Queue()
        inbox = self._listen(subject, waiting.put_nowait)
        try:
            await self._send(subject, message, inbox)
            while True:
                try:
                    async with asyncio.timeout(timeout_s):
                        arrived = await waiting.get()
                except TimeoutError as error:
                    if check is None:
                        raise NodeUnreachable(f"no answer to {subject} within {timeout_s:g} s") from error
                    await _unless_arrived(check, waiting)
                    continue
                yield _arrived(arrived)
        finally:
            del self._open[inbox]

    def _listen(self, subject: str, tell: Callable[[Msg | OutbidError], None]) -> str:
        """An inbox for the replies. One subscription serves all exchanges: each new one would have to be made known to
        every server of the mesh (0.7 ms per request with 5 nodes, 1.9 with 20).
        """
        inbox = f"{self._inbox}.{next(self._numbers)}"
        self._open[inbox] = _Exchange(subject, tell)
        return inbox

    async def _on_reply(self, msg: Msg) -> None:
        if (exchange := self._open.get(msg.subject)) is not None:
            exchange.tell(msg)

    async def _send(self, subject: str, message: Any, inbox: str) -> None:
        from nats.errors import ConnectionClosedError, MaxPayloadError, OutboundBufferLimitError

        data = message if isinstance(message, bytes) else encode(message)
        try:
            await self._nc.publish(subject, data, reply=inbox, headers=_HEADERS)
        except (ConnectionClosedError, OutboundBufferLimitError) as error:
            raise NodeUnreachable(f"the connection to {self.url} is lost") from error
        except MaxPayloadError as error:
            raise PayloadTooLarge(f"the request has {len(data) / 2**20:.1f} MiB; the node takes less") from error


def _arrived(what: Msg | OutbidError) -> Msg:
    if isinstance(what, OutbidError):
        raise what
    return what


async def _unless_arrived(check: Callable[[], Awaitable[None]], waiting: asyncio.Queue[Msg | OutbidError]) -> None:
    """What came while the check was under way comes first."""
    try:
        await check()
    except OutbidError:
        if waiting.empty():
            raise


def _raise_error(msg: Msg, subject: str) -> None:
    headers = msg.headers or {}
    if not msg.data and headers.get("Status") == "503":
        if subject.startswith(_EVERY_NODE):
            raise NodeUnreachable(f"no node answers {subject}")
        raise UnknownCapability(f"no node of the mesh answers {subject}; `outbid nodes` shows what there is")
    if "Outbid-Error" in headers:
        raise from_body(decode(msg.data, ErrorBody))
    if "Nats-Service-Error" in headers:
        raise OutbidError(headers["Nats-Service-Error"])
