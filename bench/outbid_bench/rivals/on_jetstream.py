"""The ceiling of what is kept: a no-op job on JetStream, written by hand. Run as a module: the caller, or the `worker`.

A job is published to a stream and acknowledged by it; the worker pulls, answers the caller and acknowledges. No retries
are counted, no result is kept, nobody decides who runs it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType

from outbid_bench.loops import run
from outbid_bench.rivals.driving import Submit, serve, verify

URL = os.environ["OUTBENCH_URL"]
STREAM, SUBJECT, CONSUMER = "JOBS", "jobs", "worker"
NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
PULL = b'{"batch":256,"expires":3600000000000}'
BATCH = 256


async def work() -> None:
    """One pull is always open: a new one before the last one is used up (`fetch` would stall)."""
    client = await nats.connect(URL)
    stream = client.jetstream()
    await stream.add_stream(
        name=STREAM, subjects=[SUBJECT], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
    )
    await stream.add_consumer(
        STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=10_000)
    )
    inbox = client.new_inbox()
    left = BATCH

    async def job(msg: Msg) -> None:
        nonlocal left
        reply, _, number = msg.data.partition(b" ")
        await client.publish(reply.decode(), number)
        await client.publish(msg.reply, b"+ACK")
        left -= 1
        if left == BATCH // 2:
            left += BATCH
            await client.publish(NEXT, PULL, reply=inbox)

    await client.subscribe(inbox, cb=job)
    await client.publish(NEXT, PULL, reply=inbox)
    await asyncio.Event().wait()


class Caller:
    """One inbox for all answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._waiting: dict[int, asyncio.Future[int]] = {}

    async def start(self) -> None:
        await self._client.subscribe(self._inbox, cb=self._answer)

    async def _answer(self, msg: Msg) -> None:
        number = int(msg.data)
        self._waiting.pop(number).set_result(number)

    async def submit(self, number: int) -> Awaitable[None]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        acknowledged = await self._client.request(SUBJECT, b"%b %d" % (self._inbox.encode(), number), timeout=30)
        if b'"error"' in acknowledged.data:
            raise RuntimeError(acknowledged.data.decode())
        return self._result(number, answer)

    async def _result(self, number: int, answer: asyncio.Future[int]) -> None:
        verify(number, await asyncio.wait_for(answer, 30))


@asynccontextmanager
async def opened() -> AsyncIterator[Submit]:
    client = await nats.connect(URL)
    await _until_consumed(client)
    caller = Caller(client)
    await caller.start()
    yield caller.submit
    await client.close()


async def _until_consumed(client: Client) -> None:
    for _ in range(600):
        found = await client.request(f"$JS.API.CONSUMER.INFO.{STREAM}.{CONSUMER}", b"")
        if b'"error"' not in found.data:
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the worker did not make its consumer")


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        run(work())
    else:
        serve(opened())
