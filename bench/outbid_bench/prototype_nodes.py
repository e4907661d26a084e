"""Helper process: the nodes of the auction prototype, each with its own connection. They bid and do nothing else.

Its argument is a JSON list of [name, url, credentials or null]. A winner answers with the result itself: there is no
runner, no record, no lease and nobody who would run the job again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from outbid_bench.loops import run

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def subject(node: str, verb: str) -> str:
    """`verb`: bid, award (accepted; the result follows at the subject that the job names), run (both at once)."""
    return f"bench.auction.{node}.{verb}"


class Node:
    def __init__(self, name: str, connection: Client) -> None:
        self._name = name
        self._nc = connection

    async def start(self) -> None:
        for verb, answer in (("bid", self._bid), ("award", self._award), ("run", self._run)):
            await self._nc.subscribe(subject(self._name, verb), cb=answer)
        await self._nc.flush()

    async def stop(self) -> None:
        await self._nc.close()

    async def _bid(self, msg: Msg) -> None:
        bid = {"node": self._name, "job": _decode(msg.data)["id"], "finish_s": 0.0125, "cost_usd": 0.25, "warm": True}
        await self._nc.publish(msg.reply, _encode(bid))

    async def _award(self, msg: Msg) -> None:
        job = _decode(msg.data)
        await self._nc.publish(msg.reply, b"\xa2ok")
        await self._nc.publish(job["result_to"], self._result(job))

    async def _run(self, msg: Msg) -> None:
        await self._nc.publish(msg.reply, self._result(_decode(msg.data)))

    def _result(self, job: dict[str, object]) -> bytes:
        return _encode({"id": job["id"], "state": "done", "node": self._name, "took_ms": 0.01, "result": {}})


async def serve(nodes: Sequence[tuple[str, str, str | None]]) -> None:
    running = []
    for name, url, creds in nodes:
        running.append(Node(name, await nats.connect(url, user_credentials=creds)))
        await running[-1].start()
    print("{}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for node in running:
        await node.stop()


if __name__ == "__main__":
    run(serve(json.loads(sys.argv[1])))
