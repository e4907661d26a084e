"""What a caller wants: a goal and modifiers. Ranking by it is a pure function of the bids, in the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Goal = Literal["fastest", "balanced", "green", "cheap", "private", "custom"]
Zone = Literal["here", "lan", "wan", "cloud"]
GOALS: tuple[Goal, ...] = ("fastest", "balanced", "green", "cheap", "private", "custom")
ZONES: tuple[Zone, ...] = ("here", "lan", "wan", "cloud")


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit is worth in seconds: of median time, of p90 time, of a joule, of a dollar."""

    p50: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    p90: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    per_j: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    per_usd: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`goal` None is what the [policy] section of the node that owns the job names, usually balanced. `deadline_s`
    counts from acceptance; `max_cost_usd` bounds one attempt; `prefer` and `avoid` hold node ids or names; `zone` names
    the only zones where the job may run (any, if empty; `lan` has the owner itself in it). `weights` are for goal
    custom; without them that section says. The owner fills in what is left open when it accepts the job.
    """

    goal: Goal | None = None
    deadline_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    max_cost_usd: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    zone: tuple[Zone, ...] = ()
    weights: Weights | None = None


# 0.8 p50 + 0.2 p90 is within 5 % of the mean of a log-normal time while p90 is below three times p50. The others
# dislike surprises a little more.
_BALANCED = Weights(p50=0.7, p90=0.3, per_j=0.001, per_usd=1000.0)

WEIGHTS: Mapping[Goal | None, Weights] = {
    "fastest": Weights(p50=0.8, p90=0.2),
    # a second is worth a kilojoule, or a tenth of a cent (3.60 dollars an hour)
    "balanced": _BALANCED,
    # a second is worth two joules, as if each machine drew two watts more: ten hours of waiting must save 20 Wh
    "green": Weights(p50=0.7, p90=0.3, per_j=0.5),
    # an hour is worth a cent; power is in the dollars
    "cheap": Weights(p50=0.7, p90=0.3, per_usd=360_000.0),
    "private": _BALANCED,
    "custom": Weights(),
    None: _BALANCED,
}

LATE = 1000.0
"""Among bids that miss the deadline, a second past it counts this many times."""


def weights_of(policy: Policy) -> Weights:
    """The exchange rates that its goal stands for."""
    custom = policy.weights if policy.goal == "custom" else None
    return custom or WEIGHTS[policy.goal]
