"""A no-op job on Dramatiq with Redis. Run as a module: the caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from outbid_bench.processes import serve_lines
from outbid_bench.rivals.driving import WARM_UP_S, Driven, window

WAIT_MS = 30_000
URL = os.environ["OUTBENCH_URL"]


def noop(number: int) -> int:
    return number


broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)
actor = dramatiq.actor(noop, store_results=True)


def drive(in_flight: int, seconds: float) -> Driven:
    return window(actor.send, lambda message: message.get_result(block=True, timeout=WAIT_MS), in_flight, seconds)


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(drive(**question))


if __name__ == "__main__":
    drive(1, WARM_UP_S)
    serve_lines({}, answer)
