"""The Celery application that Outbid is compared with: one task that does nothing. Settings from the environment."""

from __future__ import annotations

import importlib
import os
from typing import Any

REDIS = "OUTBENCH_REDIS_URL"
TUNED = "OUTBENCH_CELERY_TUNED"


def make(url: str, tuned: bool) -> Any:
    """Tuned: what Celery's guide on optimizing offers for many short tasks."""
    app = importlib.import_module("celery").Celery("outbid_bench", broker=url, backend=url)
    if tuned:
        app.conf.update(
            worker_disable_rate_limits=True, worker_enable_remote_control=False, worker_max_tasks_per_child=None
        )
    return app


def noop() -> None:
    pass


if url := os.environ.get(REDIS):  # in the worker
    app = make(url, bool(os.environ.get(TUNED)))
    app.task(name="noop")(noop)
