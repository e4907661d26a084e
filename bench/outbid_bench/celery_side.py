"""Celery + Redis on the same machine: several worker set-ups and two ways to drive them are tried, its best is kept."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from outbid_bench import celery_app
from outbid_bench.processes import clean_environment, end

START_TIMEOUT_S = 60.0
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True, slots=True)
class SetUp:
    """How a worker is started."""

    name: str
    options: tuple[str, ...]
    tuned: bool = True


SET_UPS = (
    SetUp("prefork, 2 processes, as it comes", ("-P", "prefork", "-c", "2"), tuned=False),
    SetUp("prefork, 2 processes, prefetch 64", ("-P", "prefork", "-c", "2", "--prefetch-multiplier", "32", *_QUIET)),
    SetUp("prefork, 1 process, prefetch 64", ("-P", "prefork", "-c", "1", "--prefetch-multiplier", "64", *_QUIET)),
    SetUp("solo, prefetch 64", ("-P", "solo", "--prefetch-multiplier", "64", *_QUIET)),
)


def installed() -> bool:
    return importlib.util.find_spec("celery") is not None


class Worker:
    """A Celery worker, and the client's side. The calls block: run them in a thread."""

    def __init__(self, url: str, set_up: SetUp, log: Path) -> None:
        self.set_up = set_up
        self._url = url
        self._log = log

    def __enter__(self) -> Worker:
        variables = {celery_app.REDIS: self._url} | ({celery_app.TUNED: "1"} if self.set_up.tuned else {})
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
        app = celery_app.make(self._url, self.set_up.tuned)
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

    def groups(self, in_flight: int, seconds: float) -> float:
        """Tasks per second, sent and collected as groups of that size."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            self._group([self._task.s()] * in_flight).apply_async().get(timeout=30, interval=0.005)
            done += in_flight
        return done / (time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class Choice:
    """A set-up and a way to drive it: `drive(worker)(in_flight, seconds)` gives tasks per second."""

    set_up: SetUp
    way: str
    per_s: float = 0.0

    def drive(self, worker: Worker) -> Callable[[int, float], float]:
        return worker.window if self.way == "one by one" else worker.groups


def try_all(url: str, log: Path, in_flight: int, seconds: float) -> list[Choice]:
    """Every set-up driven in both ways, the fastest first."""
    found = []
    for set_up in SET_UPS:
        with Worker(url, set_up, log) as worker:
            for way in ("one by one", "in groups"):
                choice = Choice(set_up, way)
                choice.drive(worker)(in_flight, seconds / 4)  # warm up
                found.append(Choice(set_up, way, choice.drive(worker)(in_flight, seconds)))
    return sorted(found, key=lambda choice: -choice.per_s)
