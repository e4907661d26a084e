"""How a bid sheet looks: the numbers of each bid in a table, and below how its score comes about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import floor, log10
from typing import TYPE_CHECKING

from outbid.cli.output import plain, table
from outbid_contracts.messages import BidSheet, Considered
from outbid_contracts.policy import LATE, Policy, Weights, weights_of

if TYPE_CHECKING:
    from rich.table import Table

Names = Mapping[str, str]
"""Of nodes, by id."""

_SAME = 0.01
"""A part of a score that differs by more from what the policy's rates give was made with other rates."""


def numbers(sheet: BidSheet) -> Table:
    """What each promised, best first; the winner is pointed at."""
    rows = table("", "node", ">score", ">start", ">finish", ">p90", ">energy", ">cost", "zone")
    for considered in sheet.bids:
        bid, won = considered.bid, considered.bid.node == sheet.winner
        rows.add_row(
            "→" if won else "",
            plain(considered.name),
            "–" if considered.excluded else figure(considered.score),
            seconds(bid.start_s),
            seconds(bid.finish_s),
            seconds(bid.finish_p90_s),
            joules(bid.energy_j),
            dollars(bid.cost_usd),
            bid.zone,
            style="green" if won else "dim" if considered.excluded else "",
        )
    return rows


def reasons(sheet: BidSheet, policy: Policy, names: Names) -> Table:
    """For each bid its arithmetic and what it rests on, for each decline why."""
    from rich.table import Table

    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for considered in sheet.bids:
        rows.add_row(plain(considered.name), plain(arithmetic(considered, policy)))
        rows.add_row("", f"[dim]{plain(rests_on(considered))}[/dim]")
    for decline in sheet.declines:
        told = f"declined ({decline.code}): {decline.reason}"
        rows.add_row(plain(names.get(decline.node, decline.node)), f"[yellow]{plain(told)}[/yellow]")
    return rows


def arithmetic(considered: Considered, policy: Policy) -> str:
    """`time 0.7 × 2.10 s + 0.3 × 3.00 s = 2.37; energy 0.001 × 340 J = 0.34; score 2.71`."""
    if considered.excluded:
        return f"excluded: {considered.excluded}"
    told = [text for text, _ in _terms(considered, policy)]
    return "; ".join([*_stretched(considered), *told, f"score {figure(considered.score)}"])


def rates(policy: Policy) -> str:
    """What the goal's exchange rates are, in a sentence."""
    weights = weights_of(policy)
    parts = [f"{weights.p50:g} × median + {weights.p90:g} × p90 of the time"]
    parts += [f"{weights.per_j:g} s per joule"] if weights.per_j else []
    parts += [f"{weights.per_usd:,.0f} s per dollar"] if weights.per_usd else []
    return f"score in seconds: {', '.join(parts)}; lower is better"


def _stretched(considered: Considered) -> list[str]:
    by = considered.stretch
    return [f"×{by:.3g}: its promises ran short"] if by > 1.005 else []


def _terms(considered: Considered, policy: Policy) -> Iterable[tuple[str, float]]:
    """Each part of the score in words, with its value."""
    weights = weights_of(policy)
    for name, value in considered.parts.items():
        words, expected = _term(name, considered, weights, value)
        known = words and abs(expected - value) <= _SAME * max(value, 1e-9)
        yield (f"{name} {words} = {figure(value)}" if known else f"{name} {figure(value)}"), value


def _term(name: str, considered: Considered, weights: Weights, value: float) -> tuple[str, float]:
    bid, by = considered.bid, considered.stretch
    match name:
        case "time":
            finish_s, p90_s = stretched(bid.finish_s, by), stretched(bid.finish_p90_s, by)
            both = ((weights.p50, finish_s), (weights.p90, p90_s))
            words = " + ".join(f"{weight:g} × {seconds(one)}" for weight, one in both if weight)
            return words, sum(weight * one for weight, one in both)
        case "energy":
            counted_j = by * (bid.energy_j if considered.added_j is None else considered.added_j)
            told = joules(counted_j, exact=True) + ("" if considered.added_j is None else " that it adds")
            return f"{weights.per_j:g} × {told}", weights.per_j * counted_j
        case "money":
            return f"{weights.per_usd:,.0f} × {dollars(bid.cost_usd)}", weights.per_usd * bid.cost_usd
        case "late":
            return f"{LATE:,.0f} × {seconds(value / LATE)} past the deadline", value
    return "", value


def stretched(promised_s: float, by: float) -> float:
    """As the owner ranks it; a promise of nothing counts as a millisecond where it is not believed."""
    return promised_s if by <= 1 else by * max(0.001, promised_s)


def rests_on(considered: Considered) -> str:
    bid = considered.bid
    told = [bid.model or "", bid.why]
    told += ["taken from its standing offer"] if bid.standing else []
    return "; ".join(part for part in told if part)


# -- numbers ---------------------------------------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 6000 else f"{value / 3600:,.1f} h"


def joules(value: float | None, *, exact: bool = False) -> str:
    """`exact`: not in larger units, because it is multiplied by something."""
    if value is None:
        return "–"
    if value < 10_000 or exact:
        return f"{figure(value)} J"
    return f"{value / 1000:,.3g} kJ" if value < 1e6 else f"{value / 1e6:,.4g} MJ"


def dollars(value: float | None) -> str:
    """With two digits that count, however small.

    >>> dollars(0.0000172), dollars(1.5), dollars(0)
    ('$0.000017', '$1.50', '$0')
    """
    if value is None:
        return "–"
    return f"${_fixed(value, 2)}" if value else "$0"


def figure(value: float) -> str:
    """Three digits, without an exponent.

    >>> figure(2.3456), figure(123456.7), figure(0.0000099)
    ('2.35', '123,457', '0.0000099')
    """
    if 1e-3 <= value < 999.5 or not value:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 999.5 else _fixed(value, 2)


def _fixed(value: float, digits: int) -> str:
    """At least two places after the point, and so many that `digits` of them count."""
    return f"{value:,.{min(15, max(2, digits - 1 - floor(log10(abs(value)))))}f}"


def times_as(value: float, other: float, *, more: str, less: str, inverse: bool = False) -> str:
    """`value` against `other`: `3.2x slower`, `60 % fewer joules`, with `inverse` always `3.2x quicker`; nothing where
    they are much the same.
    """
    if other <= 0 or value <= 0 or 0.98 < value / other < 1.02:
        return ""
    ratio = value / other
    if ratio >= 2 or ratio < 0.1 or (inverse and ratio <= 0.5):
        return f"{ratio:.3g}x {more}" if ratio >= 2 else f"{1 / ratio:.3g}x {less}"
    return f"{(ratio - 1) * 100:.0f} % {more}" if ratio > 1 else f"{(1 - ratio) * 100:.0f} % {less}"
