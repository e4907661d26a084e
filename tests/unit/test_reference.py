"""The generated pages of docs/reference say what the code does now."""

from __future__ import annotations

from pathlib import Path

import pytest

import reference

PAGES = reference.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_current(path: Path) -> None:
    assert path.exists(), "run `make reference`"
    assert path.read_text("utf-8") == PAGES[path], "run `make reference`"
