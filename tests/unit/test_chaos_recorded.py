"""When a drill reads the traces: not before they tell what clients have read already."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from outbid.chaos import run
from outbid.chaos.record import Seen

SEEN = {"j": Seen(owner="n", state="done", digest="d")}
_clock = itertools.count(1)


def write(trace: Path, what: str) -> None:
    with trace.open("a") as file:
        file.write(json.dumps({"mono": next(_clock), "node": "n", "boot": "b", "what": what, "job": "j"}) + "\n")


async def test_it_waits_for_the_note_of_an_end_that_was_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write(trace, "accepted")
    reading = asyncio.create_task(run.recorded([trace], SEEN))
    await asyncio.sleep(0)
    write(trace, "ended")
    assert [event["what"] for event in await reading] == ["accepted", "ended"]


async def test_it_does_not_wait_for_ever_for_a_note_that_a_kill_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "NOTED_S", 0.05)
    trace = tmp_path / "trace"
    write(trace, "accepted")
    assert [event["what"] for event in await run.recorded([trace], SEEN)] == ["accepted"]


async def test_a_job_whose_end_nobody_could_tell_is_not_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(run.NOTED_S):
        assert await run.recorded([tmp_path / "none"], {"j": Seen(owner="n")}) == []
