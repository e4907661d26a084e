"""The Celery application that Outbid is compared with: one task that does nothing. Settings from the environment."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

REDIS = "OUTBENCH_REDIS_URL"
SETTINGS = "OUTBENCH_CELERY_SETTINGS"

TUNED: Mapping[str, Any] = {
    "worker_disable_rate_limits": True,
    "worker_enable_remote_control": False,
    "worker_max_tasks_per_child": None,
}
"""What Celery's guide on optimizing offers for many short tasks."""

DURABLE: Mapping[str, Any] = {"task_acks_late": True, "task_reject_on_worker_lost": True}
"""A task is acknowledged when it is done: one whose worker dies runs again."""


def make(url: str, settings: Mapping[str, Any]) -> Any:
    app = importlib.import_module("celery").Celery("outbid_bench", broker=url, backend=url)
    app.conf.update(settings)
    return app


def noop() -> None:
    pass


if url := os.environ.get(REDIS):  # in the worker
    app = make(url, json.loads(os.environ[SETTINGS]))
    app.task(name="noop")(noop)
