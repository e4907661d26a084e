"""What a caller wants: a goal and modifiers. Ranking by it is a pure function of the bids, in the node."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Goal = Literal["fastest", "balanced", "green", "cheap", "private"]
Zone = Literal["here", "lan", "wan", "cloud"]
GOALS: tuple[Goal, ...] = ("fastest", "balanced", "green", "cheap", "private")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`deadline_s` counts from acceptance; `max_cost_usd` bounds one attempt; `prefer` and `avoid` hold node ids or
    names.
    """

    goal: Goal = "balanced"
    deadline_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    max_cost_usd: Annotated[float, Meta(ge=0)] | None = None
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
