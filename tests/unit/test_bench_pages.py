"""The page of benchmarks: what is kept, in which order, and what its overview says of the aims."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbid_bench.pages import write_page
from outbid_bench.plots import Bars, Lines, Plot, Steps, draw
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import spread


def section(name: str, *aims: Aim) -> str:
    table = Table("Rates", ("what", "rate"), [("a", "1.00x"), ("b", "2.00x")])
    return Section(name, f"{name.title()}: how fast", "About it.", [table], list(aims)).as_markdown(["Command: none"])


def test_a_section_measured_earlier_stays_and_one_measured_again_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_page(page, {"one": "## One\n\nold", "two": "## Two\n\nsecond"}, ["one", "two"])
    write_page(page, {"one": "## One\n\nnew"}, ["one", "two"])
    text = page.read_text()
    assert "old" not in text
    assert text.index("new") < text.index("second")


def test_what_stands_before_the_sections_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nProse.\n\n<!-- one begins -->\n\nold\n\n<!-- one ends -->\n")
    write_page(page, {"one": "## One\n\nnew"}, ["one"])
    assert page.read_text().startswith("# Title\n\nProse.\n\n<!-- one begins -->\n\n## One\n\nnew")


def test_sections_come_in_the_order_that_is_asked_for_and_unknown_ones_last(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_page(page, {name: f"## {name}" for name in ("a", "z", "m")}, ["z", "m"])
    text = page.read_text()
    assert text.index("## z") < text.index("## m") < text.index("## a")


def test_the_overview_counts_aims_and_names_those_that_were_missed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    met, missed = Aim("fast", "≥ 2x", "2.5x", True), Aim("small", "< 3 MiB", "4 MiB", False)
    write_page(
        page, {"one": section("one", met, missed), "two": section("two", met), "nameless": section("nameless")}, []
    )
    overview = page.read_text().partition("<!-- overview ends -->")[0]
    assert "| [one](#one-how-fast) | 1 of 2 |" in overview
    assert "| [two](#two-how-fast) | 1 of 1 |" in overview
    assert "| one | small | < 3 MiB | 4 MiB |" in overview
    assert "nameless" not in overview
    assert "| fast |" not in overview


def test_a_page_of_one_section_has_no_overview(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write_page(page, {"one": section("one", Aim("fast", "≥ 2x", "1x", False))}, ["one"])
    assert "overview" not in page.read_text()


@pytest.mark.parametrize(
    "plot",
    [
        Bars("rates", "Rates", "jobs/s", [("Outbid", spread([3, 4, 5])), ("other", spread([1]))]),
        Lines("sizes", "Sizes", "nodes", "jobs/s", {"Outbid": [(1, spread([2, 3])), (5, spread([4]))], "other": []}),
        Steps("pauses", "Pauses", "s", {"Outbid": [0.1, 0.2, 0.4], "other": [0.5]}),
    ],
)
def test_a_plot_is_an_svg_with_its_words_and_the_same_for_the_same_figures(plot: Plot, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws plots; comes with the extra `bench`")
    draw(plot, tmp_path / "images" / "one.svg")
    draw(plot, tmp_path / "two.svg")
    drawn = (tmp_path / "images" / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    for word in (plot.title, plot.unit, "Outbid"):
        assert f">{word}" in drawn


def test_a_section_points_to_the_files_that_it_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws plots; comes with the extra `bench`")
    found = Section("one", "One", "About.", plots=[Bars("rates", "Rates", "x", [("a", spread([1]))])])
    found.draw(tmp_path / "page.md")
    assert "![Rates](images/bench-one-rates.svg)" in found.as_markdown([])
    assert (tmp_path / "images" / "bench-one-rates.svg").exists()
