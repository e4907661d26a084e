"""A no-op job on taskiq with Redis, as a list or as a stream with acknowledgements. Run as a module: the caller."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from outbid_bench.rivals.driving import Submit, poll_s, serve, verify

URL = os.environ["OUTBENCH_URL"]
KINDS = {"list": ListQueueBroker, "stream": RedisStreamBroker}


async def noop(number: int) -> int:
    return number


# Else redis-py 8 gives up after 5 s of silence, and the worker that waited for a job dies of it.
broker = KINDS[os.environ["OUTBENCH_KIND"]](URL, socket_timeout=None)
broker = broker.with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))
task = broker.register_task(noop, task_name="noop")


@asynccontextmanager
async def opened() -> AsyncIterator[Submit]:
    await broker.startup()

    async def submit(number: int) -> Awaitable[None]:
        return result(number, await task.kiq(number))

    async def result(number: int, sent: Any) -> None:
        answer = await sent.wait_result(check_interval=poll_s(), timeout=30)
        verify(number, answer.return_value)

    yield submit
    await broker.shutdown()


if __name__ == "__main__":
    serve(opened())
