"""What the other parts of a node see of its history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from outbid_node.history.damage import Unusable
from outbid_node.history.rows import Row

Note = Row | Callable[[], Iterable[Row]]
"""A row, or what builds rows: called later and in another thread, so it must not look at what changes meanwhile."""


class History(Protocol):
    def note(self, note: Note) -> None:
        """Keep it, soon. Never blocks and never raises; what cannot be kept is counted."""

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One trusted SELECT of our own, in a thread. Sees what was noted at least a second before; an empty list if
        there is no history (its file cannot be used).
        """

    async def ask(self, verb: str, payload: bytes, timeout_s: float) -> bytes:
        """Let the file's own process answer. Raises Unusable if there is no history, RuntimeError for what it could not
        do, TimeoutError.
        """


class NoHistory:
    """Forgets everything."""

    def note(self, note: Note) -> None:
        pass

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return []

    async def ask(self, verb: str, payload: bytes, timeout_s: float) -> bytes:
        raise Unusable("this node keeps no history: [history] enabled is false")
