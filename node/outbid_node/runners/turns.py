"""Whose turn it is where models do not fit into memory together. Pure: from what is loaded and wanted to who gives way.

Loading costs seconds, so a model in demand keeps its memory for a while although jobs of another one wait, and then
gives way although jobs of its own wait. Let L be the seconds both take to load, and a turn min(`turn_max_s`,
`turn_loads` * L), counted from the moment the other was wanted, or this one was loaded if that was later:

- A runner whose turn is over takes no new attempt; what it runs it finishes. Then the other one is loaded.
- An idle runner for which no job waits gives way at once: whoever comes first has the memory. One for which jobs wait
  has PASSING_S to get the next. One whose next job came soon after the last the time before (a program that asks again
  and again) is given that time twice, if it is short against loading (as an anticipatory disk scheduler does; Iyer and
  Druschel 2001).
- Who is wanted longest comes first; a later one gets only memory that the earlier ones leave (backfilling), so a
  stream of small models does not keep a large one out.

So two models that are always wanted work at least turn_loads / (turn_loads + 1/2) of the time, two loads to two turns
(86 % with 3), as long as a turn is not cut short by `turn_max_s`; and the job that waits longest waits for one turn of
the other, its last attempts and both loads.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from outbid_node.runners.memory import Memory, enough, total

K = TypeVar("K", bound=Hashable)

PASSING_S = 0.25
"""From an attempt's end to the next award where jobs wait: a round trip between two nodes and an auction."""

SHORT = 0.1
"""A pause is short against loading if twice as long a one is no longer than this part of L."""

OFFERED_S = 2.0
"""A turn that nobody takes is over after this: whoever waited got its slot elsewhere, or does not want ours."""

RETURN_S = 2.0
"""A want that is back within this time never went: its job was on its way to a slot and did not get it."""


@dataclass(frozen=True, slots=True)
class Rules:
    turn_loads: float = 3.0
    turn_max_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder(Generic[K]):
    """A runner in memory. `idle_since` is None while it loads or works; `loaded_at` is now while it loads. `pause_s`:
    from the end of its work to the next job for it, the last time.
    """

    key: K
    need: Memory
    load_s: float
    loaded_at: float
    idle_since: float | None = None
    wanted: bool = False
    pause_s: float = math.inf
    pinned: bool = False
    """It gives way to none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Want(Generic[K]):
    """A model that is not in memory, and since when jobs wait for it here."""

    key: K
    need: Memory
    load_s: float
    since: float


@dataclass(frozen=True, slots=True)
class Turn(Generic[K]):
    """`victims` give way to `want` at `at`; it is `open` when all of them are idle and its memory can be had."""

    want: Want[K]
    victims: tuple[Holder[K], ...]
    at: float
    open: bool


def turn_ends(holder: Holder[K], want: Want[K], rules: Rules) -> float:
    """Until when it takes jobs although the other is wanted."""
    turn_s = min(rules.turn_max_s, rules.turn_loads * (holder.load_s + want.load_s))
    return max(want.since, holder.loaded_at) + turn_s


def keeps_until(holder: Holder[K], want: Want[K], rules: Rules) -> float:
    """Until when it keeps its memory, as things are: an idle one may be stopped before its turn ends."""
    until = turn_ends(holder, want, rules)
    if holder.idle_since is None:
        return until
    if not holder.wanted:
        short = 2 * holder.pause_s <= SHORT * (holder.load_s + want.load_s)
        return min(until, holder.idle_since + (2 * holder.pause_s if short else 0.0))
    return min(until, max(want.since, holder.idle_since) + PASSING_S)


def plan(
    budget: Memory, holders: Sequence[Holder[K]], wants: Iterable[Want[K]], now: float, rules: Rules
) -> dict[K, Turn[K]]:
    """The turns to come, by model, the one wanted longest first. A model that is left out has to wait for a change."""
    staying = [holder for holder in holders if not holder.pinned]
    promised = total(holder.need for holder in holders)
    held = promised
    turns: dict[K, Turn[K]] = {}
    for want in sorted(wants, key=lambda want: want.since):
        until = {holder.key: keeps_until(holder, want, rules) for holder in staying}
        staying.sort(key=lambda holder: (max(now, until[holder.key]), holder.idle_since is None, _age(holder)))
        victims = enough(staying, _need, promised + want.need - budget)
        if victims is None:
            continue
        freed = total(victim.need for victim in victims)
        at = max((until[victim.key] for victim in victims), default=now)
        idle = all(victim.idle_since is not None for victim in victims)
        can = at <= now and idle and (held - freed + want.need).fits(budget)
        turns[want.key] = Turn(want, tuple(victims), at, can)
        promised = promised - freed + want.need
        staying = [holder for holder in staying if holder not in victims]
    return turns


def giving_way(turns: dict[K, Turn[K]], now: float, rules: Rules) -> dict[K, K]:
    """{model that takes no more: model that it makes room for}."""
    return {
        victim.key: turn.want.key
        for turn in turns.values()
        for victim in turn.victims
        if turn.at <= now and turn_ends(victim, turn.want, rules) <= now
    }


def changes_at(turns: dict[K, Turn[K]], now: float, rules: Rules) -> list[float]:
    """When time alone changes what these turns say."""
    ends = [turn_ends(victim, turn.want, rules) for turn in turns.values() for victim in turn.victims]
    return [time for time in (*ends, *(turn.at for turn in turns.values())) if time > now]


def _need(holder: Holder[K]) -> Memory:
    return holder.need


def _age(holder: Holder[K]) -> float:
    """Least recently used first; of those that work the one loaded longest ago."""
    return holder.loaded_at if holder.idle_since is None else holder.idle_since
