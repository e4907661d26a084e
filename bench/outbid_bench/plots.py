"""Figures of a section as SVG: what it found at a glance. matplotlib draws them, and is loaded only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outbid_bench.stats import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN = 8.0
# Okabe and Ito's colours, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
OURS, OTHERS = COLOURS[0], "#9a9a9a"


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar for each row, with whiskers from the lowest to the highest round. Rows named Outbid stand out."""

    name: str
    title: str
    unit: str
    rows: Sequence[tuple[str, Spread]]

    @property
    def height_in(self) -> float:
        return 1.0 + 0.32 * len(self.rows)

    def draw(self, axes: Axes) -> None:
        labels = [label for label, _ in self.rows]
        found = [value for _, value in self.rows]
        whiskers = [[v.median - v.low for v in found], [v.high - v.median for v in found]]
        colours = [OURS if "Outbid" in label else OTHERS for label in labels]
        axes.barh(range(len(found)), [v.median for v in found], xerr=whiskers, color=colours, ecolor="#444444")
        axes.set_yticks(range(len(found)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(self.unit)
        axes.set_xlim(left=0)


@dataclass(frozen=True, slots=True)
class Lines:
    """A line for each series of (x, value); the band is from the lowest to the highest round."""

    name: str
    title: str
    x: str
    unit: str
    series: Mapping[str, Sequence[tuple[float, Spread]]]

    @property
    def height_in(self) -> float:
        return 4.0

    def draw(self, axes: Axes) -> None:
        for number, (label, points) in enumerate(self.series.items()):
            colour = COLOURS[number % len(COLOURS)]
            xs, found = [x for x, _ in points], [value for _, value in points]
            axes.plot(xs, [v.median for v in found], marker="o", label=label, color=colour)
            axes.fill_between(xs, [v.low for v in found], [v.high for v in found], color=colour, alpha=0.15)
        axes.set_xticks(sorted({x for points in self.series.values() for x, _ in points}))
        axes.set_xlabel(self.x)
        axes.set_ylabel(self.unit)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")


@dataclass(frozen=True, slots=True)
class Steps:
    """For each series the share of its values that are no higher than x (empirical distribution)."""

    name: str
    title: str
    unit: str
    series: Mapping[str, Sequence[float]]

    @property
    def height_in(self) -> float:
        return 4.0

    def draw(self, axes: Axes) -> None:
        for number, (label, values) in enumerate(self.series.items()):
            axes.ecdf(values, label=f"{label} ({len(values)})", color=COLOURS[number % len(COLOURS)])
        axes.set_xlabel(self.unit)
        axes.set_ylabel("share")
        axes.set_xlim(left=0)
        axes.legend(fontsize="small")


Plot = Bars | Lines | Steps

_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",  # words as words: a small file, and one that can be searched
    "svg.hashsalt": "outbid",  # the same figures give the same file
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
}


def draw(plot: Plot, file: Path) -> None:
    """Write the SVG. Raises ImportError where matplotlib is missing (extra `bench`)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(dict(_STYLE)):
        figure = Figure(figsize=(WIDTH_IN, plot.height_in), layout="constrained")
        axes = figure.add_subplot()
        plot.draw(axes)
        axes.set_title(plot.title, loc="left")
        file.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
