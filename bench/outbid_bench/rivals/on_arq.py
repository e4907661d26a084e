"""A no-op job on arq. Run as a module: the caller."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import arq
from arq.connections import RedisSettings

from outbid_bench.rivals.driving import Submit, poll_s, serve, verify

POLL_S = 0.005
"""The worker looks for jobs this often. The default, 0.5 s, would be all that is measured."""


async def noop(context: dict[str, Any], number: int) -> int:
    return number


QUIET = {"version": 1}
"""A configuration of `logging`: by default the worker writes two lines for each job."""


class WorkerSettings:
    functions = (noop,)
    redis_settings = RedisSettings.from_dsn(os.environ["OUTBENCH_URL"])
    max_jobs = 64
    poll_delay = POLL_S


@asynccontextmanager
async def opened() -> AsyncIterator[Submit]:
    pool = await arq.create_pool(WorkerSettings.redis_settings)

    async def submit(number: int) -> Awaitable[None]:
        return result(number, await pool.enqueue_job("noop", number))

    async def result(number: int, job: Any) -> None:
        verify(number, await job.result(timeout=30, poll_delay=poll_s()))

    yield submit
    await pool.aclose()


if __name__ == "__main__":
    serve(opened())
