"""docs/reference/subjects.md and the tables of nats.md say what the contracts say now."""

from __future__ import annotations

from pathlib import Path

import pytest

import reference_docs
from outbid_contracts import subjects

PAGES = reference_docs.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_current(path: Path) -> None:
    assert path.exists(), "run `python tools/reference_docs.py`"
    assert path.read_text("utf-8") == PAGES[path], "run `python tools/reference_docs.py`"


def test_every_literal_is_covered_by_a_row_of_the_table() -> None:
    rows = [row.split("|")[1] for row in (subjects.__doc__ or "").splitlines() if row.startswith("| `")]
    shapes = [name.strip(" `").split(".") for row in rows for name in row.split(",")]
    for literal in reference_docs.literals():
        words = literal.split(".")
        assert any(fits(words, shape) for shape in shapes), literal


def fits(words: list[str], shape: list[str]) -> bool:
    """`mesh.node.7k2f9qzt.award` fits `mesh.node.<id>.award`; a capability has two words or more."""
    if shape[-1] == "<capability>":
        return words[: len(shape) - 1] == shape[:-1] and len(words) > len(shape)
    return len(words) == len(shape) and all(
        want == have or want.startswith("<") for have, want in zip(words, shape, strict=True)
    )


def test_every_event_of_a_stream_is_in_the_table() -> None:
    table = "\n".join(reference_docs.event_table())
    assert all(f"| `{kind.__struct_config__.tag}` |" in table for kind in reference_docs.streamed())


def test_a_lost_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="errors"):
        reference_docs.with_tables(PAGES[reference_docs.NATS].replace("<!-- /errors -->", ""))
