"""Values as text, cells in columns, paragraphs, log lines: pure code of the dashboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from outbid_contracts.live import LogLine
from outbid_tui.log_lines import Wanted, as_cell, as_text
from outbid_tui.looks import BLOCKS, JOB_MARKS, LEVEL_MARKS, NODE_MARKS, bar, duration, first, plain, size, spark, watts
from outbid_tui.machine_details import details
from outbid_tui.machines import CARD_HEIGHT, COLUMNS, card, in_order, natural, row
from outbid_tui.state import MeshState
from outbid_tui.themes import OWN
from outbid_tui.widgets.cells import fitted, printable
from outbid_tui.widgets.pane import in_columns, wrapped
from outbid_tui.widgets.table import GAP, Column, placed
from tests.tui.imagined import log_line, presence


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(1, 40))
def test_a_sparkline_is_as_wide_as_asked_and_its_highest_value_is_highest(values: list[float], width: int) -> None:
    drawn = spark(values, width)
    assert len(drawn) == width
    shown = values[-width:]
    if shown and max(shown) > 0:
        assert drawn.lstrip()[shown.index(max(shown))] == BLOCKS[-1]


@given(st.floats(-2, 2), st.integers(1, 60))
def test_a_bar_never_leaves_its_room(fraction: float, width: int) -> None:
    assert len(bar(fraction, width)) == width
    assert (bar(fraction, width) == "█" * width) == (fraction >= 1 - 1 / (16 * width))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (99.6, "1m40"),
        (3599.4, "59m59"),
        (3599.6, "1h00"),
        (7200, "2h00"),
        (172_799, "2d00"),
        (300_000, "3d11"),
    ],
)
def test_durations_are_short_and_round_over_to_the_next_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_amounts_in_words() -> None:
    assert [watts(value) for value in (None, 5.23, 312.4, 1240.0)] == ["", "5.2 W", "312 W", "1.2 kW"]
    assert [size(value) for value in (None, 98.0, 4800.0, 131_072.0)] == ["", "98 MiB", "4.7 GiB", "128 GiB"]
    assert first(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert sorted(["pi-10", "pi-2", "nas", "pi"], key=natural) == ["nas", "pi", "pi-2", "pi-10"]


def test_no_two_states_differ_by_colour_alone() -> None:
    for marks in (NODE_MARKS, JOB_MARKS, LEVEL_MARKS):
        assert len({text[0] for text, _ in marks.values()}) == len(marks)


@given(st.text(max_size=60), st.integers(0, 40), st.booleans())
def test_text_fits_exactly_and_commands_no_terminal(text: str, width: int, right: bool) -> None:
    shown = fitted(text, width, right)
    assert cell_len(shown) == width
    assert "\x1b" not in shown
    assert printable(shown) == shown


@given(st.integers(1, 250))
def test_columns_neither_overlap_nor_leave_the_table_and_the_dearest_stays(width: int) -> None:
    found = placed(COLUMNS, width)
    x = 0
    for _, start, wide in found:
        assert start >= x
        x = start + wide + GAP
    assert x - GAP <= max(width, 2)
    assert COLUMNS[found[0][0]].name == "machine"


def test_columns_go_by_what_they_are_worth_and_the_rest_is_shared_out() -> None:
    columns = (Column("a", 10, keep=2), Column("b", 10, keep=1), Column("c", 10, keep=3, grow=1))
    assert [number for number, _, _ in placed(columns, 80)] == [0, 1, 2]
    assert [number for number, _, _ in placed(columns, 30)] == [0, 2]
    assert placed(columns, 80)[2][2] == 10 + (80 - 35)


@given(st.lists(st.text("ab é漢", min_size=1, max_size=25), min_size=1, max_size=12), st.integers(10, 40))
def test_wrapping_loses_no_word_and_keeps_to_the_width(words: list[str], width: int) -> None:
    text = " ".join(" ".join(words).split())
    half = len(text) // 2
    lines = wrapped(((text[:half], "dim"), (text[half:], "bold")), width)
    assert "".join(map(plain, lines)).replace(" ", "") == text.replace(" ", "")
    assert all(cell_len(plain(line)) <= width for line in lines)


def test_sections_stand_side_by_side_where_there_is_room() -> None:
    sections = [(f"Heading {n}", [f"line {n}.{m}" for m in range(6)]) for n in range(4)]
    narrow, wide = in_columns(sections, 60, 10), in_columns(sections, 160, 10)
    assert len(narrow) == 4 * 7 + 3
    assert len(wide) <= 15
    text = " ".join(map(plain, wide))
    assert all(f"line {n}.{m}" in text for n in range(4) for m in range(6))


def test_every_kind_of_machine_fits_its_row_its_card_and_its_details() -> None:
    state = MeshState()
    for seq in range(30):
        for number in range(6):
            state.apply(presence(number, seq))
    widths = {column.name: column.width for column in COLUMNS}
    for machine in in_order(state).machines:
        cells = row(machine, state.clock(), widths)
        assert len(cells) == len(COLUMNS)
        for column, cell in zip(COLUMNS, cells, strict=True):
            if column.name in ("cpu", "gpu", "power", "memory", "battery", "free", "jobs"):
                assert cell_len(plain(cell)) <= column.width, (column.name, plain(cell))
        lines = card(machine, 33)
        assert len(lines) == CARD_HEIGHT - 2
        assert any("Hardware" in heading for heading, _ in details(machine, state))


def test_a_wish_about_log_lines_is_met_by_all_its_parts() -> None:
    lines = [log_line(number) for number in range(12)]
    assert [line.level for line in lines if Wanted(level="warning").has(line)] == ["warning", "error"] * 2
    node = lines[0].node
    assert {line.node for line in lines if Wanted(level="debug", node=node).has(line)} == {node}
    assert {line.action for line in lines if Wanted(text="GiB").has(line)} == {"model_loaded"}
    assert {line.action for line in lines if Wanted(text="RUNNER").has(line)} == {"runner_slow"}
    assert not [line for line in lines if Wanted(action="job_settled", text="GiB").has(line)]


def test_a_log_line_is_one_line_with_its_fields(tmp_path: Path) -> None:
    line = LogLine(
        node=presence(0).node,
        name="pi",
        time_ms=1_795_348_800_123,
        level="error",
        action="ledger_died",
        text="gone\nfor good",
        fields={"code": 9, "path": "/a b"},
    )
    assert as_text(line).endswith(".123 error pi ledger_died gone for good code=9 path='/a b'")
    assert "\n" not in as_text(line)
    assert plain(as_cell(line, 80)).endswith("code=9 path='/a b'")
    assert "ledger_died" in plain(as_cell(line, 120))


def test_what_tells_states_is_read_on_the_ground_of_each_own_theme() -> None:
    for theme in OWN:
        for color in (theme.success, theme.warning, theme.error, theme.primary, theme.foreground):
            assert contrast(color or "", theme.background or "") >= 3, (theme.name, color)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio; 3 is its least for large and bold text and signs."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
