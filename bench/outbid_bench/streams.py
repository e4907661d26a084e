"""`streams`: tokens through the mesh beside plain HTTP: how many a second at full speed, and how late at a pace."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import aiohttp
import httpx
import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid import Mesh, Policy
from outbid_bench.nodes import Fleet, Node
from outbid_bench.options import Options
from outbid_bench.plots import Bars, Plot
from outbid_bench.processes import Helper
from outbid_bench.report import Section, Table
from outbid_bench.stats import Spread, percentile, ratios, spread
from outbid_contracts.events import Chunk

ECHO, TOKEN = "test.echo", "token"
STREAMS = (1, 16)
AT_ONCE = {1: 4000, 16: 500}
"""Tokens of each stream at full speed."""

PACE_S, PACED = 0.02, 40
"""Tokens of each stream at 50 a second."""

END_S = 60.0

HTTP, HTTPX = "HTTP, server-sent events, read by aiohttp", "HTTP, server-sent events, read by httpx"
SDK, AWAY = "Outbid, `mesh.stream`", "Outbid, `mesh.stream`, run on another node"
RAW = "Outbid, plain nats request"

Read = Callable[[int, float], Awaitable[list[float]]]
"""One stream of so many tokens, so many seconds apart; returns how late each one was, in seconds."""


@dataclass(slots=True)
class Found:
    """By number of streams and contender: tokens per second of each round, and how late every token of it was."""

    per_s: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    late_s: dict[tuple[int, str], list[list[float]]] = field(default_factory=dict)

    def p50_s(self, streams: int, name: str) -> list[float]:
        """Of each round."""
        return [percentile(late, 0.5) for late in self.late_s[streams, name]]


async def run(options: Options) -> Section:
    found = Found()
    (file := options.folder / "none").touch()
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(options.folder / "nodes"))
        await fleet.grow(2)
        http = await stack.enter_async_context(Helper("http_side", str(file), log=options.folder / "http.log"))
        contenders = await _contenders(stack, fleet.nodes, http.hello["url"])
        for round in range(options.rounds + 1):
            options.say(f"streams: round {round} of {options.rounds}")
            for streams in STREAMS:
                await _round(contenders, streams, found if round else Found())  # the first one warms up
    return _section(found)


async def _round(contenders: dict[str, Read], streams: int, found: Found) -> None:
    for name, read in contenders.items():
        begun = time.perf_counter()
        await asyncio.gather(*(read(AT_ONCE[streams], 0.0) for _ in range(streams)))
        tokens_per_s = streams * AT_ONCE[streams] / (time.perf_counter() - begun)
        found.per_s.setdefault((streams, name), []).append(tokens_per_s)
    for name, read in contenders.items():
        late = await asyncio.gather(*(read(PACED, PACE_S) for _ in range(streams)))
        found.late_s.setdefault((streams, name), []).append(list(chain.from_iterable(late)))


# -- the contenders ----------------------------------------------------------------------------------------------------


async def _contenders(stack: AsyncExitStack, nodes: list[Node], url: str) -> dict[str, Read]:
    here, away = nodes
    mesh = await stack.enter_async_context(Mesh(state=here.state))
    local = await here.until_up()
    client = await nats.connect(local.url, user_credentials=here.creds)
    stack.push_async_callback(client.close)
    fast = await stack.enter_async_context(aiohttp.ClientSession(url))
    usual = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=END_S))
    return {
        HTTP: lambda count, delay_s: _late(_by_aiohttp(fast, count, delay_s), count),
        HTTPX: lambda count, delay_s: _late(_by_httpx(usual, count, delay_s), count),
        SDK: lambda count, delay_s: _late(_by_sdk(mesh, here.name, count, delay_s), count),
        AWAY: lambda count, delay_s: _late(_by_sdk(mesh, away.name, count, delay_s), count),
        RAW: lambda count, delay_s: _late(_by_nats(client, here.name, count, delay_s), count),
    }


async def _late(pieces: AsyncGenerator[int, None], count: int) -> list[float]:
    """`pieces` are the moments at which they were sent, by the machine's monotonic clock (ns)."""
    late = [(time.monotonic_ns() - sent) / 1e9 async for sent in pieces]
    if len(late) != count:
        raise RuntimeError(f"{len(late)} of {count} tokens came")
    return late


def _echo(count: int, delay_s: float) -> dict[str, Any]:
    return {"text": TOKEN * count, "chunks": count, "delay_s": delay_s, "stamp": True}


async def _by_sdk(mesh: Mesh, on: str, count: int, delay_s: float) -> AsyncGenerator[int, None]:
    async for event in mesh.stream(ECHO, _echo(count, delay_s), policy=Policy(prefer=(on,))):
        if isinstance(event, Chunk):
            yield event.data["mono_ns"]


async def _by_nats(client: Client, on: str, count: int, delay_s: float) -> AsyncGenerator[int, None]:
    """As a client without the SDK: JSON, a reply subject of its own, an empty message at the end."""
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    listening = await client.subscribe(inbox, cb=arrived.put)
    asked = _echo(count, delay_s) | {"stream": True, "policy": {"prefer": [on]}}
    await client.publish(f"mesh.{ECHO}", json.dumps(asked).encode(), reply=inbox)
    while data := (await arrived.get()).data:
        event = msgspec.json.decode(data)
        if event["event"] == "chunk":
            yield event["data"]["mono_ns"]
    await listening.unsubscribe()


async def _by_aiohttp(session: aiohttp.ClientSession, count: int, delay_s: float) -> AsyncGenerator[int, None]:
    async with session.get("/tokens", params=_query(count, delay_s)) as response:
        async for line in response.content:
            if line.startswith(b"data:"):
                yield msgspec.json.decode(line[5:])["mono_ns"]


async def _by_httpx(client: httpx.AsyncClient, count: int, delay_s: float) -> AsyncGenerator[int, None]:
    async with client.stream("GET", "/tokens", params=_query(count, delay_s)) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                yield msgspec.json.decode(line[5:])["mono_ns"]


def _query(count: int, delay_s: float) -> dict[str, str]:
    return {"count": str(count), "delay_s": str(delay_s), "text": TOKEN}


# -- what is said about it ---------------------------------------------------------------------------------------------

PROMISES = {
    HTTP: "none: the stream ends with its server",
    HTTPX: "the same",
    SDK: "auction; goes on elsewhere if its node dies",
    AWAY: "the same",
    RAW: "the same, while the node that was asked lives",
}


def _section(found: Found) -> Section:
    section = Section(
        "streams",
        "Streams: tokens through the mesh",
        "Something that makes tokens without thinking, in a process of its own: a runner of a node, or an aiohttp "
        "server that answers one request a stream. Their readers are in one process with uvloop. Each piece is JSON "
        "(between SDK and node MessagePack) with the moment at which it was sent.",
    )
    section.tables = [_rate_table(found), _late_table(found)]
    section.plots = _plots(found)
    return section


def _rate_table(found: Found) -> Table:
    rows = [
        (str(streams), name, spread(per_s).rate(), ratios(per_s, found.per_s[streams, HTTP]).text("x"), PROMISES[name])
        for (streams, name), per_s in sorted(found.per_s.items(), key=lambda item: item[0][0])
    ]
    notes = (
        f"{AT_ONCE[1]} tokens, or {AT_ONCE[16]} in each of 16 streams; auction and first token included.",
        "Through the mesh each token is a message of its own that passes the runner, its daemon and the ledger (from "
        "another node both routers too); a server writes it to the reader's socket.",
    )
    return Table("Tokens per second at full speed", ("streams", "what", "tokens/s", "of HTTP", "promise"), rows, notes)


def _late_table(found: Found) -> Table:
    rows = []
    for (streams, name), late_s in sorted(found.late_s.items(), key=lambda item: item[0][0]):
        p50_s, http_s = found.p50_s(streams, name), found.p50_s(streams, HTTP)
        more = spread(ours - theirs for ours, theirs in zip(p50_s, http_s, strict=True))
        p99_ms = percentile(chain.from_iterable(late_s), 0.99) * 1000
        rows.append((str(streams), name, _ms(spread(p50_s)), f"{p99_ms:.2f} ms", _ms(more)))
    notes = ("From the call that sends it to the reader's loop, by one monotonic clock; p99 of all rounds together.",)
    return Table(
        f"How late a token is, {1 / PACE_S:.0f} a second in each stream",
        ("streams", "what", "p50", "p99", "p50 over HTTP"),
        rows,
        notes,
    )


def _ms(seconds: Spread) -> str:
    return seconds.scaled(1000).text(" ms")


def _plots(found: Found) -> list[Plot]:
    rates = [(f"{name}, {_count(streams)}", spread(per_s)) for (streams, name), per_s in found.per_s.items()]
    late = [(f"{name}, {_count(n)}", spread(found.p50_s(n, name)).scaled(1000)) for n, name in found.late_s]
    return [
        Bars("rate", "Tokens per second at full speed", "tokens/s", rates),
        Bars("late", "How late a token is (p50) at 50 a second", "ms", late),
    ]


def _count(streams: int) -> str:
    return "1 stream" if streams == 1 else f"{streams} streams"
