"""What a caller wants: a goal and modifiers. Ranking by it is a pure function of the bids, in the node."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Goal = Literal["fastest", "balanced", "green", "cheap", "private", "custom"]
Zone = Literal["here", "lan", "wan", "cloud"]
GOALS: tuple[Goal, ...] = ("fastest", "balanced", "green", "cheap", "private", "custom")


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit is worth in seconds: of median time, of p90 time, of a joule, of a dollar."""

    p50: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    p90: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    per_j: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    per_usd: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`deadline_s` counts from acceptance; `max_cost_usd` bounds one attempt; `prefer` and `avoid` hold node ids or
    names; `zone` names the only zones where the job may run (any, if empty). `weights` are for goal custom; without
    them the [policy] section of the node that owns the job says.
    """

    goal: Goal = "balanced"
    deadline_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    max_cost_usd: Annotated[float, Meta(ge=0)] | None = None
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    zone: tuple[Zone, ...] = ()
    weights: Weights | None = None
