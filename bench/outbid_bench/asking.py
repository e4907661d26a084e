"""Requests that are timed: one at a time in turns, many in flight, and the plain one for a job that does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import msgspec
from nats.aio.client import Client
from nats.errors import NoRespondersError

from outbid_bench.nodes import NOOP
from outbid_bench.rivals.driving import Submit
from outbid_contracts import subjects

Ask = Callable[[], Awaitable[object]]


def noop(client: Client, body: object, note: Callable[[str], None] = lambda winner: None) -> Ask:
    """A job as a plain JSON request, as any NATS client sends it; `note` hears who ran it. Raises RuntimeError if the
    answer is an error.
    """
    data, subject = msgspec.json.encode(body), subjects.capability(NOOP)

    async def ask() -> object:
        reply = await client.request(subject, data, timeout=30)
        if reply.headers and "Nats-Service-Error" in reply.headers:
            raise RuntimeError(reply.headers["Nats-Service-Error"])
        note(msgspec.json.decode(reply.data)["name"])
        return reply

    return ask


def submitting(ask: Ask) -> Submit:
    """For `rivals.driving.drive`: one answer tells both that the job was taken and that it is done."""

    async def submit(_: int) -> Awaitable[object]:
        return ask()

    return submit


async def take_turns(asks: Mapping[str, Ask], *, blocks: int, each: int) -> dict[str, list[float]]:
    """Seconds of each request, one at a time: `each` of one contender, then of the next; noise so hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(blocks):
        for name, ask in asks.items():
            for _ in range(each):
                begun = time.perf_counter()
                await ask()
                found[name].append(time.perf_counter() - begun)
    return found


async def until_answered(ask: Ask) -> None:
    """A new subscription takes a moment to be known on the other nodes' servers. Raises RuntimeError after 10 s."""
    for _ in range(200):
        with suppress(NoRespondersError):
            await ask()
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("a subscription on another node cannot be reached")
