"""The process that keeps the history, as the daemon uses it: what was noted is there, whatever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import psutil
import pytest

from outbid_node.history import kept as kept_module
from outbid_node.history.damage import Unusable
from outbid_node.history.kept import KeptHistory
from outbid_node.history.rows import Events
from tests.waiting import until

COUNT = "SELECT count(*), count(DISTINCT at_ms) FROM events"


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[KeptHistory]:
    history = KeptHistory(folder)
    await history.start()
    keeping = asyncio.create_task(history.run())
    try:
        yield history
    finally:
        keeping.cancel()
        await history.close()


def event(number: int) -> Events:
    return Events(at_ms=number, kind="test", node="n", text="")


def in_file(folder: Path) -> int:
    with duckdb.connect(folder / "history.duckdb", read_only=True) as connection:
        row = connection.execute("SELECT count(*) FROM events").fetchone()
    assert row is not None
    return int(row[0])


async def test_what_was_noted_is_read_a_moment_later_and_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as history:
        for number in range(2500):
            history.note(event(number))
        history.note(lambda: [event(2500), event(2501)])
        await history.flush()
        assert await history.read(COUNT) == [(2502, 2502)]
        history.note(event(2502))
    async with running(tmp_path) as history:
        assert await history.read(COUNT) == [(2503, 2503)]
    assert (tmp_path / "history.duckdb").stat().st_mode & 0o777 == 0o600


async def test_what_is_written_is_there_when_the_daemon_and_its_history_are_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.integration.test_history_process import event, running
async def main():
    async with running(Path({str(tmp_path)!r})) as history:
        for number in range(100):
            history.note(event(number))
        await history.flush()
        print(history._child.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        keeper = psutil.Process(int(await asyncio.to_thread(daemon.stdout.readline)))
        daemon.kill()
        keeper.kill()
        await asyncio.to_thread(keeper.wait, 10)
    assert in_file(tmp_path) == 100


async def test_the_process_ends_when_its_daemon_is_killed(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); print(p.pid, flush=True)"
    )
    command = [sys.executable, "-m", "outbid_node.history.process", str(tmp_path), "{}"]
    out = subprocess.run(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout
    with contextlib.suppress(psutil.NoSuchProcess):
        await asyncio.to_thread(psutil.Process(int(out.split()[0])).wait, 20)


async def test_a_killed_process_is_started_again_and_nothing_noted_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path) as history:
        await history.read(COUNT)
        for number in range(300):
            if number % 100 == 0:
                assert history._child is not None
                history._child.kill()
            history.note(event(number))
            if number % 50 == 0:
                await history._pump()
        await history.flush()
        [(rows, distinct)] = await history.read(COUNT)
    assert distinct == 300
    assert rows >= 300  # what was on its way may be there twice
    assert history.dropped == 0


async def test_a_file_that_kills_its_process_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code may end a process where it should raise; here the interpreter dies, as long as the file is there."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "history.duckdb").write_bytes(b"poison")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -e "$3/history.duckdb" ] && kill -9 $$\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    async with running(state) as history:
        history.note(event(1))
        await until(lambda: history.usable)
        await history.flush()
        assert await history.read(COUNT) == [(1, 1)]
        assert "kept as" in history.trouble
    assert [path.read_bytes() for path in state.glob("history.duckdb.broken-*")] == [b"poison"]


async def test_a_frozen_process_costs_rows_and_never_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "QUEUE", 3000)
    async with running(tmp_path) as history:
        await history.read(COUNT)
        assert history._child is not None
        pid = history._child.pid
        os.kill(pid, signal.SIGSTOP)
        for number in range(20_000):
            history.note(event(number))
            if number % 500 == 0:
                await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: not history._notes)
        await history.flush()
        [(rows, _)] = await history.read(COUNT)
        assert rows + history.dropped == 20_000
        assert history.dropped > 0


async def test_a_question_that_takes_too_long_ends_the_process_and_not_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as history:
        history.note(event(1))
        await history.flush()
        assert history._child is not None
        first = history._child.pid
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await history.ask("export", b"\x80", 0.1)
        await until(lambda: history._child is not None and history._child.pid != first)
        history.note(event(2))
        await history.flush()
        assert await history.read(COUNT) == [(2, 2)]


async def test_a_note_that_cannot_be_built_is_counted_and_the_others_are_kept(tmp_path: Path) -> None:
    def broken() -> list[Events]:
        raise ValueError("on purpose")

    async with running(tmp_path) as history:
        history.note(event(1))
        history.note(broken)
        history.note(event(2))
        await history.flush()
        assert await history.read(COUNT) == [(2, 2)]
        assert history.dropped == 1


async def test_a_file_in_use_elsewhere_is_no_history_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "history.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        await asyncio.to_thread(other.stdout.readline)
        async with running(tmp_path) as history:
            assert await history.read(COUNT) == []
            assert "lock" in history.trouble
            with pytest.raises(Unusable, match="lock"):
                await history.ask("export", b"\x80", 5)
            history.note(event(1))
            await history.flush()
            assert history.dropped == 1
        other.communicate()


async def test_an_export_is_one_parquet_file_for_each_table(tmp_path: Path) -> None:
    import msgspec

    from outbid_node.history.export import Exported, Wanted

    async with running(tmp_path) as history:
        for number in range(10):
            history.note(event(number))
        await history.flush()
        found = await history.ask("export", msgspec.msgpack.encode(Wanted()), 20)
        exported = msgspec.msgpack.decode(found, type=Exported)
        with pytest.raises(RuntimeError, match="no table 'nonsense'"):
            await history.ask("export", msgspec.msgpack.encode(Wanted(tables=("nonsense",))), 20)
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT count(*) FROM '{exported.folder}/events.parquet'").fetchall()
    assert rows == [(10,)]
    assert exported.rows["events"] == 10
    assert sorted(path.stem for path in Path(exported.folder).iterdir()) == sorted(exported.rows)
