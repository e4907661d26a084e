"""A no-op job on Celery with Redis. Run as a module: the caller."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import celery

from outbid_bench.processes import serve_lines
from outbid_bench.rivals.driving import WARM_UP_S, Counted, Driven, verify, window

WAIT_S = 30
URL = os.environ["OUTBENCH_URL"]


def noop(number: int) -> int:
    return number


app = celery.Celery("outbid_bench", broker=URL, backend=URL)
app.conf.update(json.loads(os.environ["OUTBENCH_SETTINGS"]))
task = app.task(name="noop")(noop)


def one_by_one(in_flight: int, seconds: float) -> Driven:
    return window(task.delay, lambda sent: sent.get(timeout=WAIT_S), in_flight, seconds)


def in_groups(in_flight: int, seconds: float) -> Driven:
    """Sent and collected as groups of that size, one after the other."""
    counted, numbers = Counted(), range(in_flight)
    while counted.running(seconds):
        begun = time.perf_counter()
        group = celery.group(task.s(number) for number in numbers).apply_async()
        taken = time.perf_counter()
        for number, result in zip(numbers, group.get(timeout=WAIT_S, interval=0.005), strict=True):
            verify(number, result)
            counted.add(begun, taken)
    return counted.driven()


WAYS: Mapping[str, Callable[[int, float], Driven]] = {"one by one": one_by_one, "in groups": in_groups}


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    way = question.get("way", "one by one")
    return asdict(WAYS[way](question["in_flight"], question["seconds"]))


if __name__ == "__main__":
    one_by_one(1, WARM_UP_S)
    serve_lines({}, answer)
