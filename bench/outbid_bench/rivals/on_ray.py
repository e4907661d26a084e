"""A no-op job as a call of a Ray actor. Run as a module: the caller, and Ray's own processes under it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report to its makers

import ray

from outbid_bench.rivals.driving import Submit, serve, verify

STORE_BYTES = 80 * 2**20


class Noop:
    def run(self, number: int) -> int:
        return number


@asynccontextmanager
async def opened() -> AsyncIterator[Submit]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=folder,
        )
        try:
            actor = ray.remote(Noop).remote()

            async def submit(number: int) -> Awaitable[None]:
                return result(number, actor.run.remote(number))

            async def result(number: int, reference: Any) -> None:
                verify(number, await reference)

            yield submit
        finally:
            ray.shutdown()


if __name__ == "__main__":
    serve(opened())
