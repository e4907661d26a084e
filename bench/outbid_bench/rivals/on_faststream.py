"""A no-op job as FastStream's request-reply over NATS. Run as a module: the caller."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

from faststream import FastStream
from faststream.nats import NatsBroker
from nats.errors import NoRespondersError

from outbid_bench.rivals.driving import Submit, serve, verify

broker = NatsBroker(os.environ["OUTBENCH_URL"], logger=None)  # by default it writes two lines for each message
app = FastStream(broker)


async def noop(number: int) -> int:
    return number


broker.subscriber("noop")(noop)


@asynccontextmanager
async def opened() -> AsyncIterator[Submit]:
    caller = NatsBroker(os.environ["OUTBENCH_URL"])
    await caller.connect()
    await _until_served(caller)

    async def submit(number: int) -> Awaitable[None]:
        return result(number)

    async def result(number: int) -> None:
        answer = await caller.request(number, "noop", timeout=30)
        verify(number, await answer.decode())

    yield submit
    await caller.stop()


async def _until_served(caller: NatsBroker) -> None:
    for _ in range(600):
        with suppress(NoRespondersError):
            await caller.request(0, "noop", timeout=30)
            return
        await asyncio.sleep(0.05)
    raise RuntimeError("the worker did not subscribe")


if __name__ == "__main__":
    serve(opened())
