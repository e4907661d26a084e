"""A thin bar for the rows of a list."""

from __future__ import annotations

from outbid_tui.looks import Look, Piece


def gauge(fraction: float, width: int, look: Look = "accent") -> tuple[Piece, ...]:
    """`width` characters: a thick line for what is done, a thin one for the rest.

    >>> "".join(text for text, _ in gauge(0.45, 10))
    '━━━━╸─────'
    """
    halves = round(max(0.0, min(1.0, fraction)) * width * 2)
    whole, half = divmod(halves, 2)
    done = "━" * whole + "╸" * half
    return ((done, look), ("─" * (width - len(done)), "dim"))
