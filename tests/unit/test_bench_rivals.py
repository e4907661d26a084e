"""What is counted of the compared systems, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from outbid_bench.options import Options
from outbid_bench.rivals.driving import Driven, drive, verify, window
from outbid_bench.rivals.rounds import Compared, Contender, label
from outbid_bench.rivals.running import Failed
from outbid_bench.rivals.systems import System

DRIVEN = Driven(jobs=8, per_s=100.0, taken_p50_s=0.001, p50_s=0.002, p99_s=0.003)


async def test_so_many_jobs_are_in_flight_and_only_finished_ones_are_counted() -> None:
    under_way = most = finished = 0

    async def submit(number: int) -> Awaitable[int]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        return result(number)

    async def result(number: int) -> int:
        nonlocal under_way, finished
        await asyncio.sleep(0.001)
        under_way -= 1
        finished += 1
        return number

    driven = await drive(submit, 5, 0.05)
    assert (most, under_way) == (5, 0)
    assert driven.jobs == finished > 5


async def test_a_job_that_fails_fails_the_measurement() -> None:
    async def submit(number: int) -> Awaitable[None]:
        return result(number)

    async def result(number: int) -> None:
        verify(number, number + 1 if number % 3 == 0 else number)
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="not its number"):
        await drive(submit, 2, 5.0)


def test_with_calls_that_block_each_result_is_that_of_its_own_job() -> None:
    sent: list[int] = []

    def send(number: int) -> int:
        sent.append(number)
        return number

    driven = window(send, lambda number: number, 4, 0.02)
    assert driven.jobs == len(sent) == len(set(sent)) >= 4
    with pytest.raises(RuntimeError, match="not its number"):
        window(send, lambda number: sent[-1], 4, 1.0)


async def test_one_that_fails_is_left_out_with_the_reason_and_the_others_go_on() -> None:
    async def works(in_flight: int, seconds: float) -> Driven:
        return DRIVEN

    async def fails(in_flight: int, seconds: float) -> Driven:
        raise Failed("Broken + Redis failed: on_broken died:\nTraceback\n  ConnectionError: closed\n")

    compared = Compared({"good": Contender("Good", "", works), "broken": Contender("Broken", "", fails)})
    for _ in range(2):
        await compared.round(0.0)
    assert list(compared.contenders) == ["good"]
    assert compared.contenders["good"].per_s(64) == [100.0, 100.0]
    assert compared.left_out == ["Broken + Redis failed: on_broken died: ConnectionError: closed"]


async def test_one_that_is_not_installed_is_left_out_with_what_it_needs(tmp_path: Path) -> None:
    absent = System("Absent queue", "", module="on_absent", needs="a_package_that_is_not_there")
    compared = Compared()
    async with AsyncExitStack() as stack:
        await compared.enter(stack, {"absent": absent}, Options(tmp_path))
        await compared.enter_best(stack, "best", [absent, absent], 0.0, Options(tmp_path))
    assert compared.left_out == ["Absent queue was left out: it needs the extra `bench`."] * 2
    assert not compared.contenders


def test_a_plot_names_the_system_and_not_its_set_up() -> None:
    assert label("arq + Redis (64 at a time)") == "arq + Redis"
