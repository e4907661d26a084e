"""What the rules look at: one moment of the machine. None means not known, never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from outbid_contracts.messages import Resources

UNKNOWN = Resources()


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One process on a graphics processor that is none of ours; `name` is empty if only the whole card tells its load.

    Percentages are of that card.
    """

    name: str
    busy_percent: float | None = None
    memory_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """The person's own switch. `until_s` is Unix time; None: until it is undone."""

    until_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """`at`: seconds of a clock that only goes forward. `clock_s`: Unix time.

    `idle_s`: since the last key or mouse movement. `critical_c`: by chip, where it says so. `running`: attempts under
    way here; `extra_w`: what one more is expected to draw.
    """

    at: float
    clock_s: float
    resources: Resources = UNKNOWN
    idle_s: float | None = None
    games: tuple[str, ...] = ()
    gpu_use: tuple[GpuUse, ...] = ()
    critical_c: Mapping[str, float] = field(default_factory=dict)
    pause: Pause | None = None
    running: int = 0
    extra_w: float = 0.0
