"""Which ratios moved since they were kept: what `make bench-quick` says. Pure but for its file.

Only ratios of one run are compared: the machine's speed drops out of them. What is left is noise within a run, which
its rounds show, and noise between runs, which several kept runs show. A ratio has moved if neither run's median is
within what the other one saw, and they differ by more than LEAST.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from outbid_bench.report import Table
from outbid_bench.stats import spread

Better = Literal["higher", "lower"]

LEAST = 0.10
"""A smaller change of the median is not told: nobody would look for its cause on a shared machine."""

MOST_RUNS = 5
"""Older ones are dropped from the file."""


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One measured ratio: `rounds` of this run, and which way is an improvement."""

    name: str
    better: Better
    rounds: tuple[float, ...]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one run measured, and where."""

    measured: str
    machine: str
    ratios: tuple[Ratio, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content: the latest runs, oldest first."""

    runs: tuple[Run, ...] = ()

    def rounds(self) -> Mapping[str, Sequence[float]]:
        """By name of the ratio, all rounds of all runs."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for ratio in run.ratios:
                found.setdefault(ratio.name, []).extend(ratio.rounds)
        return found


Verdict = Literal["new", "as before", "better", "WORSE"]


def judge(ratio: Ratio, before: Sequence[float]) -> Verdict:
    """`before`: the kept rounds of the same ratio; none if it is new."""
    if not before:
        return "new"
    then, now = spread(before), spread(ratio.rounds)
    within = then.low <= now.median <= then.high or now.low <= then.median <= now.high
    if within or abs(now.median - then.median) <= LEAST * abs(then.median):
        return "as before"
    return "better" if (now.median > then.median) == (ratio.better == "higher") else "WORSE"


def compare(ratios: Iterable[Ratio], kept: Kept, *, whole: bool = True) -> tuple[Table, list[str]]:
    """A row for each ratio, and the names of those that got worse. In a `whole` run kept ratios that were not measured
    are named too.
    """
    before, worse = kept.rounds(), list[str]()
    rows: list[tuple[str, ...]] = []
    for ratio in ratios:
        then = before.get(ratio.name, ())
        verdict = judge(ratio, then)
        worse += [ratio.name] if verdict == "WORSE" else []
        rows.append((ratio.name, ratio.better, _cell(then), _cell(ratio.rounds), verdict))
    known = {row[0] for row in rows}
    rows += [
        (name, "", _cell(then), "", "not measured") for name, then in before.items() if whole and name not in known
    ]
    runs = ", ".join(f"{run.measured} on {run.machine}" for run in kept.runs) or "none"
    notes = (
        f"Kept runs: {runs}.",
        "WORSE and better: neither median is within the other's rounds, and they are more than "
        f"{LEAST:.0%} apart. On another machine than the kept runs' only large changes say something.",
    )
    return Table("Ratios, kept and now", ("ratio", "good is", "kept", "now", "verdict"), rows, notes), worse


def _cell(rounds: Sequence[float]) -> str:
    return spread(rounds).text("x") if rounds else "-"


def read(file: Path) -> Kept:
    """What is kept there; nothing if there is no file. Raises ValueError with the file's name if it is damaged."""
    if not file.exists():
        return Kept()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Kept)
    except msgspec.DecodeError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and keep a new run with --write") from error


def keep(file: Path, kept: Kept, run: Run) -> None:
    """Add a run, replacing the file as a whole."""
    runs = (*kept.runs, run)[-MOST_RUNS:]
    written = msgspec.json.format(msgspec.json.encode(Kept(runs=runs)), indent=1)
    other = file.with_suffix(".new")
    other.write_bytes(written + b"\n")
    other.replace(file)
