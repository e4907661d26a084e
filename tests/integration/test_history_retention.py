"""What a history forgets: by age, by size, and how its file becomes small again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbid_node.history.frames import Batch, Settings
from outbid_node.history.retention import DAY_MS, Retention, size_of
from outbid_node.history.rollup import RollUp, roll_ups
from outbid_node.history.rows import Events
from outbid_node.history.schema import as_json
from outbid_node.history.store import Store
from outbid_node.history.writer import Step, Writer


class Bench:
    """A file whose writer's thread is this one."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.writer = Writer(self.store, on_written=lambda seq, dropped: None, on_state=lambda usable: None)
        self.writer._open()
        self.now_ms = time.time_ns() // 1_000_000

    def sql(self, text: str, *parameters: object) -> list[tuple[object, ...]]:
        assert self.writer._connection is not None
        return self.writer._connection.execute(text, list(parameters)).fetchall()

    def all_steps(self, step: Step) -> int:
        """Until there is nothing to do; how many."""
        for count in range(10_000):
            assert self.writer._connection is not None
            if step(self.writer._connection) is None:
                return count
        raise AssertionError("it never ends")

    def retention(self, **settings: float) -> Retention:
        return Retention(self.store, self.writer, Settings(**settings))  # type: ignore[arg-type]

    def events(self, days: int, each_day: int) -> None:
        """The newest of today."""
        self.sql(
            "INSERT INTO events SELECT ? - (range * ?)::BIGINT, 'test', 'n', md5(range::VARCHAR) FROM range(?)",
            self.now_ms,
            DAY_MS / each_day,
            days * each_day,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def test_rows_go_when_they_are_older_than_is_asked_for_and_no_others(bench: Bench) -> None:
    bench.events(days=20, each_day=10)
    bench.sql("INSERT INTO usage (hour_ms, jobs) VALUES (?, 1)", bench.now_ms - 300 * DAY_MS)
    steps = bench.all_steps(bench.retention(keep_days=5).step)
    assert bench.sql("SELECT count(*) FROM events WHERE at_ms < ?", bench.now_ms - 5 * DAY_MS) == [(0,)]
    assert bench.sql("SELECT count(*) FROM events") == [(50,)]
    assert bench.sql("SELECT count(*) FROM usage") == [(1,)]
    assert steps >= 14, "a step is at most one day"


def test_a_file_that_is_too_large_loses_its_oldest_days_and_becomes_smaller(bench: Bench) -> None:
    bench.sql(
        """INSERT INTO bids (job, at_ms, why) SELECT md5(range::VARCHAR), ? - 40 * 86400000::BIGINT + range * 5500,
        md5((range * 7)::VARCHAR) || md5((range * 3)::VARCHAR) FROM range(600000)""",
        bench.now_ms,
    )
    bench.events(days=40, each_day=10)
    bench.sql("CHECKPOINT")
    before = bench.store.file.stat().st_size
    assert before > 25 << 20
    retention = bench.retention(max_mib=16)
    bench.all_steps(retention.step)
    assert bench.writer._connection is not None
    after = size_of(bench.writer._connection)
    assert after.used <= 16 << 20
    [(left, newest)] = bench.sql("SELECT count(*), max(at_ms) FROM bids")
    assert 100_000 < left < 500_000  # type: ignore[operator]
    assert newest == bench.now_ms - 40 * DAY_MS + 599_999 * 5_500
    assert bench.sql("SELECT count(*) FROM events") == [(400,)], "there is little of them, and they tell much"


def test_a_hollow_file_is_written_anew_with_all_that_is_in_it(bench: Bench) -> None:
    bench.sql("INSERT INTO events SELECT range, 'old', 'n', md5(range::VARCHAR) FROM range(500000)")
    bench.events(days=3, each_day=1000)
    bench.sql("CHECKPOINT")
    before = bench.store.file.stat().st_size
    retention = bench.retention(keep_days=30)
    bench.all_steps(retention.step)
    assert retention.rewritten == 1
    assert bench.store.file.stat().st_size < before / 4
    assert bench.store.file.stat().st_mode & 0o777 == 0o600
    assert bench.sql("SELECT count(*), count(DISTINCT text) FROM events") == [(3000, 3000)]
    assert bench.sql("SELECT max(version) FROM schema_version") == [(1,)]
    assert bench.writer._write(Batch(1, {"events": as_json([Events(at_ms=1, kind="k", node="n", text="")])[0]}, 1)) == 0
    assert not list(bench.store.file.parent.glob("history.duckdb.new*"))


def samples(bench: Bench, days: int) -> RollUp:
    bench.sql(
        """INSERT INTO samples (at_ms, span_s, cpu_percent, power_w, storage_free_mib, running, waiting, power_source)
        SELECT ? + range * 10000, 10, range % 100, NULL, range, range % 2, 0, 'x' FROM range(?)""",
        (bench.now_ms - days * DAY_MS) // DAY_MS * DAY_MS,
        days * 8640,
    )
    return roll_ups(Settings(keep_samples_days=2))[0]


def test_old_samples_become_means_of_ten_minutes_once(bench: Bench) -> None:
    roll = samples(bench, days=5)
    [before] = bench.sql("SELECT sum(span_s), avg(cpu_percent) FROM samples")
    assert bench.all_steps(roll.step) in (2, 3)
    assert bench.all_steps(roll.step) == 0
    [(rolled, span_s, running)] = bench.sql(
        "SELECT count(*), max(span_s), min(running) FROM samples WHERE at_ms < ?", bench.now_ms - 3 * DAY_MS
    )
    assert rolled <= 3 * 144  # type: ignore[operator]
    assert (span_s, running) == (600.0, 1)
    [after] = bench.sql("SELECT sum(span_s), sum(cpu_percent * span_s) / sum(span_s) FROM samples")
    assert after == pytest.approx(before, rel=1e-5)
    assert bench.sql("SELECT count(*) FROM samples WHERE power_w IS NOT NULL") == [(0,)]


def test_a_roll_up_that_fails_midway_leaves_the_samples_as_they_were(bench: Bench) -> None:
    roll = samples(bench, days=5)
    before = bench.sql("SELECT count(*), sum(cpu_percent) FROM samples")

    def fails(rows: object) -> list[Events]:
        raise ValueError("on purpose")

    roll._fewer = fails
    with pytest.raises(ValueError, match="on purpose"):
        bench.all_steps(roll.step)
    assert bench.sql("SELECT count(*), sum(cpu_percent) FROM samples") == before


def test_the_sums_of_an_hour_become_one_row_and_stay_exact(bench: Bench) -> None:
    bench.sql(
        """INSERT INTO usage SELECT ? + (range // 60) * 3600000, 'u' || range % 2, 'o', 'c', NULL, 2, 1, 0.5, 3.0, 0.25,
        MAP {'a': 1.0, 'b' || range % 2: 2.0} FROM range(60 * 24 * 4)""",
        (bench.now_ms - 4 * DAY_MS) // DAY_MS * DAY_MS,
    )
    bench.sql(
        "CREATE TEMP MACRO total() AS TABLE SELECT sum(jobs), sum(failed), sum(seconds), sum(units['a']) FROM usage"
    )
    before = bench.sql("FROM total()")
    bench.all_steps(roll_ups(Settings())[1].step)
    assert bench.sql("FROM total()") == before
    old = "SELECT count(*), count(DISTINCT (hour_ms, submitter)) FROM usage WHERE hour_ms < ?"
    [(rows, kinds)] = bench.sql(old, bench.now_ms - 3 * DAY_MS)
    assert rows == kinds
    assert bench.sql("SELECT units FROM usage ORDER BY hour_ms, submitter LIMIT 1") == [({"a": 30.0, "b0": 60.0},)]
