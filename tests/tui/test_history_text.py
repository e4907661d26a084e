"""SQL in colour, answers as text, the example queries."""

from __future__ import annotations

import doctest

import pytest
from textual.app import App, ComposeResult

from outbid import Table
from outbid_contracts.history import Column, Silent
from outbid_contracts.ids import NodeId
from outbid_tui.history import answer, editor, report
from outbid_tui.history.editor import SqlEditor, highlights
from outbid_tui.history.examples import EXAMPLES
from tests.history_examples import examples


def test_the_examples_are_those_of_the_docs() -> None:
    assert [(one.sql, one.over) for one in EXAMPLES] == [(one.sql, one.over) for one in examples()]
    assert len({one.title for one in EXAMPLES}) == len(EXAMPLES)


def test_an_example_in_the_editor_is_two_queries_again() -> None:
    for one in EXAMPLES:
        assert answer.parts(answer.joined(one.sql, one.over)) == (one.sql, one.over or None)


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("select 'from'", ["keyword", "string"]),
        ("SELECT 'it''s' -- it's", ["keyword", "string", "comment"]),
        ("selection FROM tablet", ["keyword"]),
        ('"select" 12.5e3 a1', ["number"]),
        ("sum (x)", ["function"]),
        ("'never closed", ["string"]),
        ("ü 'ä' é", ["string"]),
    ],
)
def test_words_are_coloured_by_kind(line: str, kinds: list[str]) -> None:
    assert [kind for _, _, kind in highlights(line)] == kinds


def test_places_are_in_bytes() -> None:
    ((begin, end, _),) = highlights("ü 'ä'")
    assert "ü 'ä'".encode()[begin:end].decode() == "'ä'"


async def test_colours_follow_what_is_typed() -> None:
    class Editing(App[None]):
        def compose(self) -> ComposeResult:
            yield SqlEditor("SELECT 1")

    app = Editing()
    async with app.run_test() as pilot:
        typed = app.query_one(SqlEditor)
        assert [kind for _, _, kind in typed._highlights[0]] == ["keyword", "number"]
        typed.focus()
        await pilot.press("end", "space", "minus", "minus")
        assert [kind for _, _, kind in typed._highlights[0]] == ["keyword", "number", "comment"]


def test_what_is_missing_in_an_answer_is_said() -> None:
    found = Table(
        columns=(Column(name="x", type="BIGINT"),),
        rows=((1,), (2,)),
        truncated=True,
        cut=("pi",),
        silent=(Silent(node=NodeId("n1"), name="nas", why="asleep"),),
    )
    assert answer.remark(found, 0.123) == "2 rows in 0.12 s · there are more on pi · without nas: asleep"


def test_cells_hold_nothing_that_could_reach_the_terminal() -> None:
    assert answer.cell("a\x1b[2Jb\tc") == "a [2Jb c"
    assert len(answer.cell("x" * 500)) == answer.WIDEST


@pytest.mark.parametrize("module", [answer, editor, report])
def test_doctests(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
