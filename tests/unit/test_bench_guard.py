"""The regression guard: what counts as moved, and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from outbid_bench.guard import MOST_RUNS, Better, Kept, Ratio, Run, compare, judge, keep, read


def ratio(*rounds: float, better: Better = "higher", name: str = "rate") -> Ratio:
    return Ratio(name=name, better=better, rounds=rounds)


def run(*ratios: Ratio, measured: str = "today") -> Run:
    return Run(measured=measured, machine="a machine", ratios=ratios)


@pytest.mark.parametrize(
    ("better", "now", "verdict"),
    [
        ("higher", (1.0, 1.1, 1.2), "as before"),
        ("higher", (0.5, 0.6, 0.7), "WORSE"),
        ("higher", (1.5, 1.6, 1.7), "better"),
        ("lower", (0.5, 0.6, 0.7), "better"),
        ("lower", (1.5, 1.6, 1.7), "WORSE"),
        # far away, but its own rounds reach what was kept: noise
        ("higher", (0.2, 0.5, 1.15), "as before"),
    ],
)
def test_a_ratio_moved_if_neither_median_is_within_the_others_rounds(
    better: Better, now: tuple[float, ...], verdict: str
) -> None:
    assert judge(ratio(*now, better=better), [1.0, 1.1, 1.2]) == verdict


def test_a_small_change_is_no_change_however_steady_the_rounds_were() -> None:
    assert judge(ratio(0.95, 0.95, 0.95), [1.0, 1.0, 1.0]) == "as before"
    assert judge(ratio(0.85, 0.85, 0.85), [1.0, 1.0, 1.0]) == "WORSE"


def test_noise_between_kept_runs_widens_what_counts_as_before() -> None:
    lone, several = Kept(runs=(run(ratio(1.0, 1.01)),)), Kept(runs=(run(ratio(1.0, 1.01)), run(ratio(0.7, 0.71))))
    now = ratio(0.7, 0.72)
    assert compare([now], lone)[1] == ["rate"]
    assert compare([now], several)[1] == []


def test_new_and_missing_ratios_are_named() -> None:
    kept = Kept(runs=(run(ratio(1.0, name="old one")),))
    table, worse = compare([ratio(1.0, name="new one")], kept)
    assert [(row[0], row[-1]) for row in table.rows] == [("new one", "new"), ("old one", "not measured")]
    assert worse == []
    part, _ = compare([ratio(1.0, name="new one")], kept, whole=False)
    assert [row[0] for row in part.rows] == ["new one"]


def test_kept_runs_are_read_again_and_the_oldest_go(tmp_path: Path) -> None:
    file = tmp_path / "quick.json"
    for number in range(MOST_RUNS + 2):
        keep(file, read(file), run(ratio(1.0, float(number)), measured=str(number)))
    assert [kept.measured for kept in read(file).runs] == [str(number) for number in range(2, MOST_RUNS + 2)]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "quick.json"
    file.write_text('{"runs": 3}')
    with pytest.raises(ValueError, match=r"quick\.json is damaged"):
        read(file)
