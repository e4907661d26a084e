"""The systems that Outbid is compared with, really started: what they count, and what they leave behind."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from outbid_bench.rivals.driving import Driven
from outbid_bench.rivals.running import Failed, running
from outbid_bench.rivals.systems import CELERY_CHOICES, INTERACTIVE, JETSTREAM, SYNCED, System

SYSTEMS = {**INTERACTIVE, "celery": CELERY_CHOICES[0], "taskiq stream": SYNCED["taskiq"]}
MARK = "OUTBENCH_TEST"


def marked(system: System) -> tuple[System, str]:
    """Its worker, its caller and all that they start carry this mark in their environment."""
    mark = uuid4().hex
    return replace(system, environ={**system.environ, MARK: mark}), mark


def left(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


@pytest.mark.parametrize("name", SYSTEMS)
async def test_each_runs_one_and_many_jobs_and_leaves_no_process(name: str, tmp_path: Path) -> None:
    if needed := SYSTEMS[name].missing():
        pytest.skip(f"{SYSTEMS[name].title} needs {needed}")
    system, mark = marked(SYSTEMS[name])
    async with running(system, tmp_path / "it") as found:
        one, many = await found.drive(1, 0.1), await found.drive(16, 0.1)
        assert left(mark)
        server = found.server
    _check(one, 1)
    _check(many, 16)
    assert not left(mark)
    assert server is None or not listens(server.url)


def _check(driven: Driven, in_flight: int) -> None:
    assert driven.jobs >= in_flight
    assert driven.per_s > 0
    assert 0 <= driven.taken_p50_s <= driven.p99_s
    assert 0 < driven.p50_s <= driven.p99_s


async def test_one_whose_caller_dies_at_once_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    system, mark = marked(replace(INTERACTIVE[JETSTREAM], module="on_nothing"))
    with pytest.raises(Failed, match=r"(?s)did not start.*on_nothing"):
        async with running(system, tmp_path / "it"):
            pass
    assert not left(mark)


async def test_an_error_between_two_measurements_leaves_no_process(tmp_path: Path) -> None:
    system, mark = marked(INTERACTIVE[JETSTREAM])
    with suppress(ZeroDivisionError):
        async with running(system, tmp_path / "it") as found:
            await found.drive(4, 0.05)
            assert left(mark)
            raise ZeroDivisionError
    assert not left(mark)


async def test_jobs_that_nobody_runs_are_not_counted(tmp_path: Path) -> None:
    system, _ = marked(INTERACTIVE[JETSTREAM])
    async with running(system, tmp_path / "it") as found:
        assert found.worker is not None
        found.worker.kill()
        found.worker.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(found.drive(2, 0.1), 1.0)
