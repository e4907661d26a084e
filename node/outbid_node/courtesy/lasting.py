"""A switch that does not flap: on once something lasts, off once it has been gone for long enough."""

from __future__ import annotations


class Lasting:
    """Times in seconds. On when seen for `after_s`; off when not seen for `back_s`."""

    def __init__(self, after_s: float, back_s: float) -> None:
        self.on = False
        self._after_s, self._back_s = after_s, back_s
        self._since: float | None = None
        self._last = 0.0

    def look(self, seen: bool, at: float) -> bool:
        """Whether it is on now."""
        if seen:
            self._since = at if self._since is None else self._since
            self._last = at
            self.on = self.on or at - self._since >= self._after_s
        else:
            self._since = None
            self.on = self.on and at - self._last < self._back_s
        return self.on
