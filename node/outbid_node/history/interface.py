"""What the other parts of a node see of its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from outbid_node.history.rows import Row


class History(Protocol):
    def note(self, row: Row) -> None:
        """Keep it, soon. Never blocks and never raises; what cannot be kept is counted."""

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One trusted SELECT of our own, in a thread. Sees what was noted at least a second before; an empty list if
        there is no history (its file cannot be used).
        """


class NoHistory:
    """Forgets everything."""

    def note(self, row: Row) -> None:
        pass

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return []
