"""The arithmetic of the durable benchmark: what is counted, and what is compared with what."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from outbid_bench.dispatch import CELERY
from outbid_bench.durable import BATCHES, GROUPS, RAW, SDK, Rates
from outbid_bench.syncs import PROBES, Syncs, counted, probe

SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.127224         210       605           fsync
 40.00    0.081607          24       329         2 fdatasync
------ ----------- ----------- --------- --------- ----------------
100.00    0.208831         223       934         2 total
"""


def test_syncs_of_both_kinds_are_added_up_and_the_total_is_not_one() -> None:
    assert counted(SUMMARY) == 605 + 329


def test_a_process_that_synced_nothing_counts_none() -> None:
    assert counted("") == 0


def test_batches_are_compared_with_groups_and_the_rest_with_single_tasks() -> None:
    rates = Rates(1, {CELERY: [100.0, 200.0], GROUPS: [50.0, 50.0], SDK: [500.0, 1200.0], BATCHES: [500.0, 500.0]})
    assert rates.of_celery(SDK) == "5.5x (5.0–6.0)"
    assert rates.of_celery(BATCHES) == "10.0x"


def test_without_celery_there_is_no_ratio() -> None:
    assert Rates(1, {RAW: [1.0]}).of_celery(RAW) == "-"


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    assert probe(tmp_path) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="strace is for Linux")
async def test_syncs_of_a_process_are_counted_while_it_is_watched(tmp_path: Path) -> None:
    script = "import os, sys; f = open(sys.argv[1], 'wb'); [os.fsync(f.fileno()) for _ in sys.stdin]"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(tmp_path / "file")), stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    async with Syncs(process.pid, tmp_path) as syncs:
        process.stdin.write(b"\n" * PROBES)
        process.stdin.close()
        await process.wait()
    if syncs.count is None:
        pytest.skip("strace is missing or may not watch")
    assert syncs.count == PROBES
