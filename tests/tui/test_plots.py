"""Plots as text, and the query that fills them on a real DuckDB with the tables of the history."""

from __future__ import annotations

import doctest
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pytest
from textual.app import App, ComposeResult

from outbid_node.history.rows import Runs, Samples
from outbid_node.history.store import Store
from outbid_tui.history import braille
from outbid_tui.history.braille import COLOURS, MARKS, Frame, Line, Piece, framed, legend, plot
from outbid_tui.history.plots import Plot
from outbid_tui.history.questions import OVER, RANGES, Answer, answers, question
from tests.history_examples import insert, row

NOON_S = 1_795_348_800.0
HOUR = RANGES[0]


@pytest.fixture(autouse=True)
def _greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def text(rows: Sequence[Sequence[Piece]]) -> list[str]:
    return ["".join(piece for piece, _ in row) for row in rows]


def wave(name: str, phase: float) -> Line:
    points = [(NOON_S - 3600 + 60 * n, 40 + 20 * math.sin(n / 9 + phase)) for n in range(61) if not 20 < n < 30]
    return Line(name, points)


@pytest.mark.parametrize("size", [(13, 4), (40, 9), (200, 50)])
def test_a_plot_is_exactly_as_large_as_asked(size: tuple[int, int]) -> None:
    lines = [wave("pi", 0), wave("laptop", 2)]
    rows = text(plot(lines, framed(lines, NOON_S - 3600, NOON_S, 150), *size))
    assert [len(row) for row in rows] == [size[0]] * size[1]


def test_axes_begin_at_zero_and_end_at_a_round_number_and_the_times_are_those_of_the_frame() -> None:
    lines = [wave("pi", 0)]
    rows = text(plot(lines, framed(lines, NOON_S - 3600, NOON_S, 150), 60, 12))
    assert rows[0].startswith("80┤")
    assert rows[5].startswith("40┤")
    assert rows[10].startswith(" 0┤")
    assert rows[11].split() == ["└11:00", "11:20", "11:40", "12:00"]


def test_a_gap_in_the_data_is_a_gap_in_the_line() -> None:
    frame = framed([wave("pi", 0)], NOON_S - 3600, NOON_S, 150)
    rows = text(plot([wave("pi", 0)], frame, 63, 12))
    blank = [all(row[column] == " " for row in rows[:-1]) for column in range(3, 63)]
    assert all(blank[22:29])
    assert not any(blank[:19])


def test_lines_on_top_of_each_other_keep_their_own_marks_and_colours() -> None:
    lines = [wave(name, 0) for name in ("a", "b", "c")]
    pieces = [piece for row in plot(lines, framed(lines, NOON_S - 3600, NOON_S, 150), 120, 20) for piece in row]
    for number in range(3):
        assert any(MARKS[number] in drawn and colour == COLOURS[number] for drawn, colour in pieces)


def test_no_two_lines_have_the_same_mark_or_colour() -> None:
    assert len(set(MARKS)) == len(set(COLOURS)) == len(MARKS) == len(COLOURS)


def test_ratios_are_as_far_below_one_as_above() -> None:
    line = Line("pi", [(NOON_S, math.log2(3.0))])
    frame = framed([line], NOON_S - 3600, NOON_S, 150, ratio=True)
    rows = text(plot([line], frame, 40, 8))
    assert [rows[n].split("┤")[0].strip() for n in (0, 3, 6)] == ["4×", "1×", "1/4×"]


def test_the_legend_has_the_newest_values_and_leaves_out_what_does_not_fit() -> None:
    lines = [Line("pi", [(1, 5.0), (2, 47.3)]), Line("laptop", [(1, 61.0)])]
    assert text([legend(lines, 40)]) == ["● pi 47.3  ▲ laptop 61  "]
    assert text([legend(lines, 14)]) == ["● pi 47.3  …"]


def test_values_outside_of_the_frame_break_nothing() -> None:
    frame = Frame(0, 10, 0, 1, 100)
    assert len(plot([Line("x", [(-5, 5.0), (5, -3.0), (50, 9.0)])], frame, 30, 6)) == 6


# -- the query ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    store = Store(tmp_path)
    yield store.open()
    store.close()


def test_the_query_averages_where_the_data_are(history: duckdb.DuckDBPyConnection) -> None:
    at_ms = int((NOON_S - 120) * 1000)
    run = {"outcome": "done", "promised_s": 1.0, "took_s": 2.0, "counts": {"new_tokens": 30.0}}
    for seconds in (1.0, 2.0):
        insert(history, row(Runs, ended_ms=at_ms, seconds={"new_tokens": seconds}, **run))
    insert(history, row(Runs, ended_ms=at_ms - 7_200_000, seconds={"new_tokens": 9.0}, **run))
    insert(history, row(Samples, at_ms=at_ms, span_s=10.0, power_w=30.0, waiting=2))
    insert(history, row(Samples, at_ms=at_ms + 10_000, span_s=30.0, power_w=10.0, waiting=1))
    insert(history, row(Samples, at_ms=at_ms + 20_000, span_s=10.0, power_w=None, waiting=0))

    found = {plot: (t, v) for plot, t, v in history.execute(question(HOUR, NOON_S)).fetchall()}
    bucket = (NOON_S - 120) // 60 * 60
    assert found == {
        "speed": (bucket, 20.0),
        "watts": (bucket, 15.0),
        "waiting": (bucket, 2.0),
        "promise": (bucket, 1.0),
    }


def test_of_many_nodes_the_busiest_are_shown_and_the_rest_counted(history: duckdb.DuckDBPyConnection) -> None:
    plots = "FROM range(20) r(n), (VALUES ('watts', 1.0), ('speed', -100.0)) p(plot, times)"
    history.execute(f"CREATE TABLE answers AS SELECT 'n' || n AS node, plot, 60 AS t, (n * times)::DOUBLE AS v {plots}")
    found = answers(history.execute(OVER).fetchall())
    for name in ("watts", "speed"):
        assert {line.name for line in found[name].lines} == {f"n{n}" for n in range(12, 20)}
        assert found[name].more == 12


def test_values_that_are_no_numbers_are_left_out() -> None:
    rows = [("pi", "watts", 60, math.nan, 1), ("pi", "watts", 120, None, 1), ("pi", "watts", 180, 5.0, 1)]
    assert answers(rows)["watts"].lines == [Line("pi", [(180.0, 5.0)])]


def test_doctests() -> None:
    assert doctest.testmod(braille).failed == 0


class _Plots(App[None]):
    CSS = "Plot { height: 10; }"

    def compose(self) -> ComposeResult:
        yield Plot("Tokens per second", "speed")
        yield Plot("Taken against promised", "promise", ratio=True)

    def on_mount(self) -> None:
        lines = [wave("laptop", 0), wave("pi", 2), wave("studio", 4)]
        self.query_one("#speed", Plot).show(Answer(lines, more=92), HOUR, NOON_S)
        ratios = [Line("pi", [(NOON_S - 60 * n, math.sin(n / 5)) for n in range(50, -1, -1)])]
        self.query_one("#promise", Plot).show(Answer(ratios), HOUR, NOON_S)


def test_plots_look_as_they_should(snap_compare: object) -> None:
    assert callable(snap_compare)
    assert snap_compare(_Plots(), terminal_size=(80, 24))
