"""The least that an auction costs: a caller and nodes written by hand on nats-py, with nothing but the auction.

The caller is the owner itself: it publishes to nodes and hears their answers. No daemon stands between, no process runs
the job, nothing is kept and a lost message loses the job. So it is the floor under what a mesh with those can reach.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid_bench.asking import until_answered
from outbid_bench.processes import Helper, end, free_port, until_listening
from outbid_bench.prototype_nodes import subject
from outbid_node.bus import binary

SAMPLED = 3
"""Nodes asked for a bid: asking all costs O(N) and loses bids under load, three find a near-best node (measured)."""

BIDS_WITHIN_S = 0.1
"""Then the auction goes on with the bids that are there, or, with none, asks others."""

RESULT_WITHIN_S = 30.0

JOB = {
    "v": 1,
    "capability": "test.noop",
    "owner": "bench",
    "model": None,
    "params": {},
    "work": {},
    "policy": {"goal": "balanced"},
    "created_ms": 1_760_000_000_000,
    "attempt": 1,
}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Place(NamedTuple):
    """Where one node of the prototype connects. `creds` None: the server asks for none."""

    name: str
    url: str
    creds: str | None


class _Auction:
    """Bids of one job; `closed` is done once `wanted` of them are there."""

    def __init__(self, wanted: int) -> None:
        self.bids: list[dict[str, Any]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = wanted

    def take(self, bid: bytes) -> None:
        self.bids.append(_decode(bid))
        if len(self.bids) == self._wanted:
            self.close()

    def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class Prototype:
    """A caller with its connection. `standing` and `asked` each bring one job to its result."""

    def __init__(self, connection: Client, names: Sequence[str]) -> None:
        self.unanswered = 0
        """Auctions that got no bid in time and were held again."""
        self._nc = connection
        self._names = names
        self._turn = itertools.cycle(names)
        self._numbers = itertools.count(1)
        self._inbox = connection.new_inbox()
        self._auctions: dict[str, _Auction] = {}
        self._results: dict[str, asyncio.Future[bytes]] = {}

    async def start(self) -> None:
        """Returns when all its nodes can be reached."""
        await self._nc.subscribe(f"{self._inbox}.bid.*", cb=self._on_bid)
        await self._nc.subscribe(f"{self._inbox}.result.*", cb=self._on_result)
        await self._nc.flush()
        for name in self._names:
            await until_answered(lambda name=name: self._run_at(name))  # type: ignore[misc]

    async def standing(self) -> None:
        """Awarded from what is known of the nodes: one request to the next one brings the result."""
        await self._run_at(next(self._turn))

    async def asked(self) -> None:
        """SAMPLED random nodes are asked, the best bid is awarded, its node accepts and then sends the result."""
        number = str(next(self._numbers))
        winner = await self._auctioned(number)
        result = self._results[number] = asyncio.get_running_loop().create_future()
        job = _encode({**JOB, "id": number, "result_to": f"{self._inbox}.result.{number}"})
        await self._nc.request(subject(winner, "award"), job, timeout=RESULT_WITHIN_S)
        async with asyncio.timeout(RESULT_WITHIN_S):
            _decode(await result)

    async def _run_at(self, name: str) -> None:
        job = _encode({**JOB, "id": str(next(self._numbers))})
        reply = await self._nc.request(subject(name, "run"), job, timeout=RESULT_WITHIN_S)
        _decode(reply.data)

    async def _auctioned(self, number: str) -> str:
        """The node that promises to be done first."""
        while not (bids := await self._bids(number)):
            self.unanswered += 1
        winner: str = min(bids, key=lambda bid: bid["finish_s"])["node"]
        return winner

    async def _bids(self, number: str) -> list[dict[str, Any]]:
        nodes = random.sample(self._names, min(SAMPLED, len(self._names)))
        auction = self._auctions[number] = _Auction(len(nodes))
        late = asyncio.get_running_loop().call_later(BIDS_WITHIN_S, auction.close)
        cfp = _encode({**JOB, "id": number})
        for name in nodes:
            await self._nc.publish(subject(name, "bid"), cfp, reply=f"{self._inbox}.bid.{number}")
        await auction.closed
        late.cancel()
        del self._auctions[number]
        return auction.bids

    async def _on_bid(self, msg: Msg) -> None:
        auction = self._auctions.get(_last(msg.subject))
        if auction is not None and msg.data:
            auction.take(msg.data)

    async def _on_result(self, msg: Msg) -> None:
        result = self._results.pop(_last(msg.subject), None)
        if result is not None and not result.done():
            result.set_result(msg.data)


@asynccontextmanager
async def prototype(places: Sequence[Place], log: Path) -> AsyncIterator[Prototype]:
    """A caller on the first place's server, with a node at each place: in one process, from 5 nodes on in two."""
    processes = 1 if len(places) < 5 else 2
    async with AsyncExitStack() as stack:
        for number in range(processes):
            nodes = json.dumps(places[number::processes])
            await stack.enter_async_context(Helper("prototype_nodes", nodes, log=log))
        connection = await nats.connect(places[0].url, user_credentials=places[0].creds)
        stack.push_async_callback(connection.close)
        caller = Prototype(connection, [place.name for place in places])
        await caller.start()
        yield caller


@contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """One nats-server as it comes, without JetStream, routes or credentials; its URL."""
    port = free_port()
    command = [str(binary.find()), "-a", "127.0.0.1", "-p", str(port), "-l", str(folder / "plain.log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        until_listening(port, process)
        yield f"nats://127.0.0.1:{port}"
    finally:
        end(process)


def _last(subject: str) -> str:
    return subject.rpartition(".")[2]
