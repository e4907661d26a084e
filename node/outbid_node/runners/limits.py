"""How long a runner may take, whether it lives, and how long after a crash it is left alone."""

from __future__ import annotations

from dataclasses import dataclass

_BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Before the next start, by how often in a row it crashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """In seconds, but for `turn_loads`. A large import keeps the interpreter's lock for long on a slow disk, hence
    `load_hang_s`; evaluating one batch of a long prompt takes seconds on a slow processor, hence `cancel_s`.
    """

    keep_warm_s: float = 600.0
    ping_s: float = 2.0
    hang_s: float = 12.0
    load_hang_s: float = 120.0
    stop_s: float = 3.0
    cancel_s: float = 20.0
    kill_grace_s: float = 2.0
    turn_loads: float = 3.0
    """How many times as long as both take to load a model works while another one is wanted (`turns`)."""
    turn_max_s: float = 120.0


class BackOff:
    """Crashes in a row, without one job done between them."""

    def __init__(self) -> None:
        self.crashes = 0
        self.retry_at = 0.0
        self.last_fault = ""

    def crashed(self, fault: str, now: float) -> float:
        """Seconds until it may be started again."""
        delay_s = _BACK_OFF_S[min(self.crashes, len(_BACK_OFF_S) - 1)]
        self.crashes += 1
        self.last_fault = fault
        self.retry_at = now + delay_s
        return delay_s

    def succeeded(self) -> None:
        self.crashes = 0

    def blocked(self, now: float) -> str:
        """Why it is not started now, or empty."""
        if now >= self.retry_at:
            return ""
        times = "once" if self.crashes == 1 else f"{self.crashes} times in a row"
        return f"crashed {times} ({self.last_fault}); next try in {self.retry_at - now:.1f} s"


class Pulse:
    """Signs of life, counted in ticks and not in seconds: when we ourselves slept, the silence was not the runner's."""

    def __init__(self) -> None:
        self.heard = True
        self._silent = 0

    def tick(self) -> int:
        """How many ticks in a row nothing was heard."""
        self._silent = 0 if self.heard else self._silent + 1
        self.heard = False
        return self._silent
