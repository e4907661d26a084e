"""A no-op job on procrastinate with PostgreSQL. Run as a module: the caller."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from procrastinate import App, PsycopgConnector

from outbid_bench.rivals.driving import Submit, poll_s, serve

CONNECTIONS = 10


async def noop(number: int) -> None:
    pass


app = App(connector=PsycopgConnector(conninfo=os.environ["OUTBENCH_URL"], max_size=CONNECTIONS))
task = app.task(name="noop")(noop)


@asynccontextmanager
async def opened() -> AsyncIterator[Submit]:
    async with app.open_async():

        async def submit(number: int) -> Awaitable[None]:
            return result(await task.defer_async(number=number))

        yield submit


async def result(job: int) -> None:
    """Ask until the job has ended: nobody is told, and no result is kept. Raises RuntimeError if it failed."""
    status = "todo"
    while status in ("todo", "doing"):
        await asyncio.sleep(poll_s())
        status = (await app.job_manager.get_job_status_async(job)).value
    if status != "succeeded":
        raise RuntimeError(f"job {job} ended as {status}")


if __name__ == "__main__":
    serve(opened())
