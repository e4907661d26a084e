"""Celery + Redis on the same machine: several worker set-ups and two ways to drive them are tried, its best is kept."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from outbid_bench import celery_app
from outbid_bench.processes import clean_environment, end

START_TIMEOUT_S = 60.0
THREADS = 8
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True, slots=True)
class SetUp:
    """How a worker is started."""

    name: str
    options: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=lambda: celery_app.TUNED)


def _pool(kind: str, count: int, prefetch: int = 64) -> tuple[str, ...]:
    """A worker's options. `prefetch`: tasks it holds in all."""
    return "-P", kind, "-c", str(count), "--prefetch-multiplier", str(prefetch // count), *_QUIET


SET_UPS = (
    SetUp("prefork, 2 processes, as it comes", ("-P", "prefork", "-c", "2"), settings={}),
    SetUp("prefork, 2 processes, prefetch 64", _pool("prefork", 2)),
    SetUp("prefork, 1 process, prefetch 64", _pool("prefork", 1)),
    SetUp("solo, prefetch 64", _pool("solo", 1)),
)


def installed() -> bool:
    return importlib.util.find_spec("celery") is not None


_DURABLE = {**celery_app.TUNED, **celery_app.DURABLE}
DURABLE_SET_UPS = (
    SetUp("prefork, 2 processes, as it comes", ("-P", "prefork", "-c", "2"), celery_app.DURABLE),
    SetUp("prefork, 2 processes, prefetch 64", _pool("prefork", 2), _DURABLE),
    SetUp("prefork, 8 processes, prefetch 64", _pool("prefork", 8), _DURABLE),
    SetUp("threads, 8, prefetch 64", _pool("threads", 8), _DURABLE),
    SetUp("solo, prefetch 64", _pool("solo", 1), _DURABLE),
)
"""For the same promises as a durable job; several at once, so that Redis can sync their messages together."""


class Worker:
    """A Celery worker, and the client's side. The calls block: run them in a thread."""

    def __init__(self, url: str, set_up: SetUp, log: Path) -> None:
        self.set_up = set_up
        self._url = url
        self._log = log

    def __enter__(self) -> Worker:
        settings = dict(self.set_up.settings)
        variables = {celery_app.REDIS: self._url, celery_app.SETTINGS: json.dumps(settings)}
        command = [sys.executable, "-m", "celery", "-A", "outbid_bench.celery_app", "worker", "-l", "ERROR"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.set_up.options],
                env=clean_environment(variables),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._log.parent,
            )
        app = celery_app.make(self._url, settings)
        self._task = app.task(name="noop")(celery_app.noop)
        self._group: Any = importlib.import_module("celery").group
        self._task.delay().get(timeout=START_TIMEOUT_S)
        self.app = app
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end(self._process)
        self.app.close()

    def window(self, in_flight: int, seconds: float) -> float:
        """Tasks per second, a new one for each that is done."""
        pending: deque[Any] = deque()
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            while len(pending) < in_flight:
                pending.append(self._task.delay())
            pending.popleft().get(timeout=30)
            done += 1
        while pending:
            pending.popleft().get(timeout=30)
            done += 1
        return done / (time.perf_counter() - begun)

    def threads(self, in_flight: int, seconds: float) -> float:
        """As `window`, but sent from several threads, whose messages Redis can sync together."""
        pending: deque[Future[Any]] = deque()
        done, begun = 0, time.perf_counter()
        with ThreadPoolExecutor(THREADS) as senders:
            while pending or time.perf_counter() - begun < seconds:
                while len(pending) < in_flight and time.perf_counter() - begun < seconds:
                    pending.append(senders.submit(self._task.delay))
                pending.popleft().result(30).get(timeout=30)
                done += 1
        return done / (time.perf_counter() - begun)

    def groups(self, in_flight: int, seconds: float) -> float:
        """Tasks per second, sent and collected as groups of that size."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            self._group([self._task.s()] * in_flight).apply_async().get(timeout=30, interval=0.005)
            done += in_flight
        return done / (time.perf_counter() - begun)

    def alone(self) -> tuple[float, float]:
        """Seconds until one task was taken by Redis, and until its result was there."""
        begun = time.perf_counter()
        task = self._task.delay()
        taken = time.perf_counter() - begun
        task.get(timeout=30)
        return taken, time.perf_counter() - begun


WAYS: Mapping[str, Callable[[Worker, int, float], float]] = {
    "one by one": Worker.window,
    "by 8 threads": Worker.threads,
    "in groups": Worker.groups,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A set-up and a way to drive it: `drive(worker)(in_flight, seconds)` gives tasks per second."""

    set_up: SetUp
    way: str
    per_s: float = 0.0

    def drive(self, worker: Worker) -> Callable[[int, float], float]:
        return lambda in_flight, seconds: WAYS[self.way](worker, in_flight, seconds)


def try_all(
    url: str,
    log: Path,
    in_flight: int,
    seconds: float,
    *,
    set_ups: Sequence[SetUp] = SET_UPS,
    ways: Sequence[str] = ("one by one", "in groups"),
) -> list[Choice]:
    """Every set-up driven in all ways, the fastest first."""
    found = []
    for set_up in set_ups:
        with Worker(url, set_up, log) as worker:
            for way in ways:
                choice = Choice(set_up, way)
                choice.drive(worker)(in_flight, seconds / 4)  # warm up
                found.append(Choice(set_up, way, choice.drive(worker)(in_flight, seconds)))
    return sorted(found, key=lambda choice: -choice.per_s)
