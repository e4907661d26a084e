"""Which systems are compared, how each is set up and what it promises. Set up as its own documentation advises for many
short jobs; where that is silent, as was fastest here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from outbid_bench.rivals.servers import NatsServer, Postgres, Redis, Server

ARQ = Path(sys.prefix) / "apart" / "arq"
"""arq needs an older redis-py than the others: `make bench` puts both here, where only arq's processes look."""


@dataclass(frozen=True, slots=True)
class System:
    """A system in one set-up. `module` (of this package) is its caller; `prepare` is run to its end before `worker` is
    started, both as arguments of Python. `extra` goes into each question to the caller.
    """

    title: str
    promise: str
    module: str
    needs: str
    """The package to import."""
    server: Callable[[Path], Server] | None = None
    missing_server: Callable[[], str] = str
    prepare: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    polls: bool = False
    """Its worker is never idle: it must stand still while others are measured."""

    def missing(self) -> str:
        """What must be installed before it can run; empty if nothing."""
        if os.name == "nt":
            return "Linux or macOS"
        if self.needs == "arq":
            return Redis.missing() if ARQ.is_dir() else "a redis-py of its own, which `make bench` installs"
        found = importlib.util.find_spec(self.needs) is not None
        return self.missing_server() if found else "the extra `bench`"


def _redis(title: str, promise: str, module: str, needs: str, *, synced: bool, **more: Any) -> System:
    server = partial(Redis, synced=synced)
    return System(title, promise, module, needs, server, Redis.missing, **more)


# -- Celery ------------------------------------------------------------------------------------------------------------

_MANY_SHORT_TASKS = {
    "worker_disable_rate_limits": True,
    "worker_enable_remote_control": False,
    "worker_max_tasks_per_child": None,
}
"""What Celery's guide on optimizing offers."""
_LATE = {"task_acks_late": True, "task_reject_on_worker_lost": True}
"""A task is acknowledged when it is done: one whose worker dies runs again."""
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


def _celery(pool: str, processes: int, *, prefetch: int = 64, synced: bool = False, way: str = "one by one") -> System:
    """`prefetch`: tasks that the worker holds in all; 0: as it comes."""
    options: tuple[str, ...] = ("-P", pool, "-c", str(processes))
    settings: dict[str, Any] = dict(_LATE) if synced else {}
    if prefetch:
        options += ("--prefetch-multiplier", str(prefetch // processes), *_QUIET)
        settings |= _MANY_SHORT_TASKS
    name = f"{pool}{f' {processes}' if pool == 'prefork' else ''}{f', prefetch {prefetch}' if prefetch else ''}, {way}"
    return _redis(
        f"Celery + Redis ({name})",
        "job and result synced; runs again, an hour later if all of the worker dies"
        if synced
        else "in memory; lost if its worker dies",
        "on_celery",
        "celery",
        synced=synced,
        worker=("-m", "celery", "-A", "outbid_bench.rivals.on_celery", "worker", "-l", "ERROR", *options),
        environ={"OUTBENCH_SETTINGS": json.dumps(settings)},
        extra={"way": way},
    )


CELERY_CHOICES = (_celery("solo", 1), _celery("prefork", 2), _celery("solo", 1, way="in groups"))
CELERY_SYNCED_CHOICES = (
    _celery("prefork", 8, synced=True),
    _celery("prefork", 2, prefetch=0, synced=True),
    _celery("prefork", 8, synced=True, way="in groups"),
)
"""The best three of eight and of fifteen set-ups (pool, processes, prefetch, sent one by one, by threads or in groups)
that were tried on two cores. They were within 6 % of each other: which is the best differs from run to run.
"""

# -- the others --------------------------------------------------------------------------------------------------------


def _dramatiq(*, synced: bool) -> System:
    return _redis(
        "Dramatiq + Redis (8 threads)",
        "job and result synced; runs again after a minute" if synced else "in memory; runs again after a minute",
        "on_dramatiq",
        "dramatiq",
        synced=synced,
        worker=(
            *("-m", "dramatiq", "outbid_bench.rivals.on_dramatiq", "--processes", "1", "--threads", "8"),
            *("--worker-shutdown-timeout", "1000", "--skip-logging"),
        ),
    )


def _arq(*, synced: bool) -> System:
    return _redis(
        "arq + Redis (64 at a time, worker polls each 5 ms)",
        "job and result synced; runs again after 5 minutes" if synced else "in memory; runs again after 5 minutes",
        "on_arq",
        "arq",
        synced=synced,
        worker=(
            *("-m", "arq", "outbid_bench.rivals.on_arq.WorkerSettings"),
            *("--custom-log-dict", "outbid_bench.rivals.on_arq.QUIET"),
        ),
        environ={"PYTHONPATH": str(ARQ)},
        polls=True,
    )


def _taskiq(kind: str, promise: str, *, synced: bool) -> System:
    return _redis(
        f"taskiq-redis ({kind}, caller polls)",
        promise,
        "on_taskiq",
        "taskiq_redis",
        synced=synced,
        worker=(
            *("-m", "taskiq", "worker", "outbid_bench.rivals.on_taskiq:broker", "--workers", "1"),
            *("--max-async-tasks", "64", "--max-prefetch", "64", "--log-level", "ERROR"),
        ),
        environ={"OUTBENCH_KIND": kind},
    )


def _procrastinate(promise: str, *, synced: bool) -> System:
    command = ("-m", "procrastinate", "--log-level", "error", "--app", "outbid_bench.rivals.on_procrastinate.app")
    return System(
        "procrastinate + PostgreSQL (64 at a time)",
        promise,
        "on_procrastinate",
        "procrastinate",
        partial(Postgres, synced=synced),
        Postgres.missing,
        prepare=(*command, "schema", "--apply"),
        worker=(*command, "worker", "--concurrency", "64", "--fetch-job-polling-interval", "0.05"),
    )


def _jetstream(promise: str, *, synced: bool) -> System:
    return System(
        f"hand-written JetStream{', sync_interval: always' if synced else ''}",
        promise,
        "on_jetstream",
        "nats",
        partial(NatsServer, synced=synced),
        worker=("-m", "outbid_bench.rivals.on_jetstream", "worker"),
    )


FASTSTREAM = System(
    "FastStream, request-reply over NATS",
    "nothing kept",
    "on_faststream",
    "faststream",
    NatsServer,
    worker=("-m", "faststream", "run", "outbid_bench.rivals.on_faststream:app"),
)
RAY = System("Ray actor", "in memory; fails if its worker dies", "on_ray", "ray")

JETSTREAM = "jetstream"
INTERACTIVE: Mapping[str, System] = {
    JETSTREAM: _jetstream("job in a file, not synced; runs again; no result kept", synced=False),
    "faststream": FASTSTREAM,
    "ray": RAY,
    "arq": _arq(synced=False),
    "taskiq": _taskiq("list", "in memory; lost if its worker dies", synced=False),
    "dramatiq": _dramatiq(synced=False),
    "procrastinate": _procrastinate(
        "on disk soon after (synchronous_commit off); by hand if its worker dies", synced=False
    ),
}
UNSYNCED = "jetstream unsynced"
SYNCED: Mapping[str, System] = {
    JETSTREAM: _jetstream("job synced, no result kept; runs again", synced=True),
    UNSYNCED: _jetstream("less: not synced, no result kept; runs again", synced=False),
    "arq": _arq(synced=True),
    "taskiq": _taskiq("stream", "job and result synced; runs again after 10 minutes", synced=True),
    "dramatiq": _dramatiq(synced=True),
    "procrastinate": _procrastinate("job and state synced, no result kept; by hand if its worker dies", synced=True),
}
