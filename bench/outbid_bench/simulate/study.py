"""The whole comparison: the home fleet at several loads, and fleets up to a thousand nodes, over fixed seeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.simulate.baselines import BASELINES
from outbid_bench.simulate.runs import BASELINE_NAMES, CLAIRVOYANT_NAMES, HOME, Figures, Setup, outbid, simulate
from outbid_bench.simulate.single import presence, span_s
from outbid_bench.stats import Spread, spread

SEEDS = (1, 2, 3, 4, 5)
FEWER = SEEDS[:3]
"""For what is not a target."""
LOADS = (0.3, 0.5, 0.7, 0.9)
SIZES = (50, 1000)
COMPARED_TO = 50
"""Nodes. What the other schedulers take to simulate grows with jobs and nodes both; beyond, only Outbid runs, once."""

MAIN = 0.7
FASTEST, BALANCED, GREEN = outbid("fastest"), outbid("balanced"), outbid("green")
GOALS = (FASTEST, BALANCED, GREEN)
ALL = (*BASELINE_NAMES, *CLAIRVOYANT_NAMES, *GOALS)
BEST, BEST_CLAIRVOYANT = "best baseline", "clairvoyant"

LABELS: Mapping[str, str] = {
    **{name: cls.name for name, cls in zip(BASELINE_NAMES, BASELINES, strict=True)},
    FASTEST: "**Outbid, fastest**",
    BALANCED: "**Outbid, balanced**",
    GREEN: "**Outbid, green**",
    BEST_CLAIRVOYANT: "clairvoyant, the best of its variants",
}


@dataclass(slots=True)
class Batch:
    """The runs of one setup over the seeds: figures by scheduler, in the order of the seeds."""

    setup: Setup
    found: dict[str, list[Figures]]

    def add_best(self) -> None:
        """For each seed the best baseline and the best clairvoyant, by mean completion time."""
        for title, names in ((BEST, BASELINE_NAMES), (BEST_CLAIRVOYANT, CLAIRVOYANT_NAMES)):
            rows = [self.found[name] for name in names if name in self.found]
            if rows:
                self.found[title] = [min(seed, key=lambda f: f.mean_s) for seed in zip(*rows, strict=True)]

    def of(self, name: str, what: Callable[[Figures], float]) -> Spread:
        return spread(what(figures) for figures in self.found[name])

    def ratio(self, name: str, to: str, what: Callable[[Figures], float]) -> Spread:
        """Seed by seed."""
        pairs = zip(self.found[name], self.found[to], strict=True)
        return spread(what(a) / what(b) for a, b in pairs)


def mean_s(figures: Figures) -> float:
    return figures.mean_s


async def section(pool: Executor, options: Options) -> Section:
    seeds = options.few(SEEDS, 2)
    at_home = [Setup(load=load, span_s=900.0 if options.quick else span_s(HOME)) for load in LOADS]
    main = next(setup for setup in at_home if setup.load == MAIN)
    others = {
        "all machines there": replace(main, presence="all there"),
        "machines come and go, jobs in bursts": replace(main, bursty=True),
        "machines come and go, the arrivals take no notice": replace(main, presence="go and overload"),
    }
    home: dict[Setup, Batch] = {}
    for setup in (*at_home, *others.values()):
        target = setup.load == MAIN and not setup.bursty
        home[setup] = await _batch(pool, options, setup, ALL, seeds if target else options.few(FEWER, 2))
    sizes = [Setup(n, MAIN, presence=presence(n), span_s=span_s(n)) for n in options.few(SIZES, 1)]
    labs = [await _batch(pool, options, setup, *_lab(setup)) for setup in sizes]
    found = Section("simulate", "Placement, simulated", ABOUT)
    found.tables = [
        _table("Home, 70 % load, machines come and go", home[main]),
        *(_table(f"Home, 70 % load, {title}", home[setup]) for title, setup in others.items()),
        _loads([home[setup] for setup in at_home]),
        _greens([home[setup] for setup in at_home]),
        _sizes(labs),
    ]
    where = {"machines come and go": main, **others}
    found.aims = list(_aims({title: home[setup] for title, setup in where.items()}, labs))
    return found


ABOUT = (
    "Hours of a mesh on a simulated clock; docs/simulation.md says what is real and what is assumed. Cells are medians "
    "over seeds, with (lowest-highest); ratios are taken seed by seed."
)


def _lab(setup: Setup) -> tuple[Sequence[str], Sequence[int]]:
    """Schedulers and seeds."""
    if setup.nodes > COMPARED_TO:
        return (FASTEST,), SEEDS[:1]
    return (*BASELINE_NAMES, CLAIRVOYANT_NAMES[0], FASTEST, GREEN), FEWER


async def _batch(pool: Executor, options: Options, setup: Setup, names: Sequence[str], seeds: Iterable[int]) -> Batch:
    options.say(f"simulate: {setup.nodes} nodes, {setup.load:.0%} load, {setup.presence}{', bursts' * setup.bursty}")
    loop = asyncio.get_running_loop()
    runs = {
        name: [loop.run_in_executor(pool, simulate, replace(setup, seed=seed), name) for seed in seeds]
        for name in names
    }
    batch = Batch(setup, {name: list(await asyncio.gather(*futures)) for name, futures in runs.items()})
    batch.add_best()
    return batch


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(title: str, batch: Batch) -> Table:
    columns = (
        "scheduler",
        "mean",
        "of best baseline",
        "of clairvoyant",
        "p95",
        "slowdown",
        "late",
        "wrong node",
        "energy",
        "dollars",
        "lost attempts",
        "refused",
    )
    rows = [_row(batch, name) for name in (*BASELINE_NAMES, *GOALS, BEST_CLAIRVOYANT)]
    least_s = batch.of(BEST_CLAIRVOYANT, lambda f: f.least_s).text(" s", 1)
    least_j = batch.of(BEST_CLAIRVOYANT, lambda f: f.least_j / 1000).text(" kJ", 0)
    notes = (f"Proven bounds, not tight: no scheduler's mean is below {least_s}, none's energy below {least_j}.",)
    return Table(title, columns, rows, notes)


def _row(batch: Batch, name: str) -> tuple[str, ...]:
    return (
        LABELS[name],
        batch.of(name, mean_s).text(" s", 1),
        batch.ratio(name, BEST, mean_s).text("x"),
        batch.ratio(name, BEST_CLAIRVOYANT, mean_s).text("x"),
        f"{batch.of(name, lambda f: f.p95_s).median:.0f} s",
        f"{batch.of(name, lambda f: f.slowdown).median:.1f}x",
        f"{batch.of(name, lambda f: f.late).median:.1%}",
        f"{batch.of(name, lambda f: f.wrong).median:.1%}",
        f"{batch.of(name, lambda f: f.energy_j).median / 1000:.0f} kJ",
        f"{batch.of(name, lambda f: f.cost_usd).median:.2f}",
        f"{batch.of(name, lambda f: f.again).median:.0f}",
        f"{batch.of(name, lambda f: f.refusals).median:.0f}",
    )


def _loads(batches: Sequence[Batch]) -> Table:
    names = (*BASELINE_NAMES, FASTEST, BEST_CLAIRVOYANT)
    columns = ("mean completion time", *(f"{batch.setup.load:.0%} load" for batch in batches))
    rows = [(LABELS[name], *(batch.of(name, mean_s).text(" s", 1) for batch in batches)) for name in names]
    ratios = [
        (f"Outbid, fastest, of the {to}", *(batch.ratio(FASTEST, to, mean_s).text("x") for batch in batches))
        for to in (BEST, BEST_CLAIRVOYANT)
    ]
    return Table("Home at several loads, machines come and go", columns, [*rows, *ratios])


def _greens(batches: Sequence[Batch]) -> Table:
    columns = (
        "load",
        "energy, fastest",
        "energy, green",
        "of fastest",
        "least, of fastest",
        "late, fastest",
        "late, green",
        "mean, green",
    )
    rows = [
        (
            f"{batch.setup.load:.0%}",
            batch.of(FASTEST, _kilojoules).text(" kJ", 0),
            batch.of(GREEN, _kilojoules).text(" kJ", 0),
            batch.ratio(GREEN, FASTEST, _kilojoules).text("x"),
            batch.of(FASTEST, lambda f: f.least_j / f.energy_j).text("x"),
            f"{batch.of(FASTEST, lambda f: f.late).median:.1%}",
            f"{batch.of(GREEN, lambda f: f.late).median:.1%}",
            batch.of(GREEN, mean_s).text(" s", 1),
        )
        for batch in batches
    ]
    return Table("What green saves", columns, rows, GREEN_NOTES)


GREEN_NOTES = (
    "Late: of the jobs that have a deadline, half of all.",
    "Least: no scheduler can need less than this share of the energy of `fastest` (all work in full batches on the "
    "machine that is thriftiest at it).",
)


def _kilojoules(figures: Figures) -> float:
    return figures.energy_j / 1000


def _sizes(labs: Sequence[Batch]) -> Table:
    columns = (
        "nodes",
        "jobs/s",
        "best baseline",
        "Outbid, fastest",
        "of best baseline",
        "of clairvoyant",
        "energy, green of fastest",
        "refused, of jobs",
        "deciding, a job",
        "heartbeat",
    )
    rows = [_size(lab) for lab in labs]
    return Table("Labs at 70 % load", columns, rows, ("Deciding: an owner's processor time but for heartbeats.",))


def _size(lab: Batch) -> tuple[str, ...]:
    compared = BEST in lab.found
    return (
        str(lab.setup.nodes),
        f"{lab.of(FASTEST, lambda f: f.per_s).median * lab.setup.load:.1f}",
        lab.of(BEST, mean_s).text(" s", 1) if compared else "",
        lab.of(FASTEST, mean_s).text(" s", 1),
        lab.ratio(FASTEST, BEST, mean_s).text("x") if compared else "",
        lab.ratio(FASTEST, BEST_CLAIRVOYANT, mean_s).text("x") if compared else "",
        lab.ratio(GREEN, FASTEST, _kilojoules).text("x") if compared else "",
        f"{lab.of(FASTEST, lambda f: f.refusals / f.jobs).median:.1%}",
        lab.of(FASTEST, lambda f: f.decision_us).text(" µs", 0),
        lab.of(FASTEST, lambda f: f.beat_us).text(" µs", 0),
    )


# -- aims --------------------------------------------------------------------------------------------------------------


def _aims(homes: Mapping[str, Batch], labs: Sequence[Batch]) -> Iterable[Aim]:
    for where, batch in homes.items():
        best, bound = batch.ratio(FASTEST, BEST, mean_s), batch.ratio(FASTEST, BEST_CLAIRVOYANT, mean_s)
        yield Aim(f"home, {where}: mean of the best baseline's", "≤ 0.6x", best.text("x"), best.median <= 0.6)
        yield Aim(f"home, {where}: mean of the clairvoyant's", "≤ 1.25x", bound.text("x"), bound.median <= 1.25)
        saved = batch.ratio(GREEN, FASTEST, _kilojoules)
        late = batch.of(GREEN, lambda f: f.late).median - batch.of(FASTEST, lambda f: f.late).median
        told = f"{saved.text('x')}, late {late:+.1%}"
        yield Aim(f"home, {where}: green's energy of fastest's", "≤ 0.7x, none later", told, _kept(saved, late))
    known = {lab.setup.nodes: lab.of(FASTEST, lambda f: f.decision_us).median for lab in labs}
    if 50 in known and 1000 in known:
        grows = known[1000] / known[50]
        yield Aim("deciding at 1,000 nodes of that at 50", "flat: ≤ 1.5x", f"{grows:.2f}x", grows <= 1.5)


def _kept(saved: Spread, late: float) -> bool:
    return saved.median <= 0.7 and late <= 0.001
