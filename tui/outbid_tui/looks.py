"""How values look on every screen: cells of text with named looks, sparklines, bars, times and amounts. No Textual.

A look never stands alone: what it says is also in a letter, a symbol or a word, so that nobody needs the colours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal

Look = Literal["", "dim", "good", "warn", "bad", "accent", "bold"]
Piece = tuple[str, Look]
Cell = str | tuple[Piece, ...]

BLOCKS = " ▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"

NODE_MARKS: dict[str, Piece] = {
    "up": ("● up", "good"),
    "draining": ("◐ draining", "warn"),
    "leaving": ("◌ leaving", "warn"),
    "in use": ("◒ in use", "warn"),
    "trouble": ("▲ trouble", "bad"),
    "silent": ("? silent", "bad"),
    "away": ("○ away", "dim"),
}
JOB_MARKS: dict[str, Piece] = {
    "waiting": ("◷ waiting", "warn"),
    "running": ("▶ running", "accent"),
    "done": ("✓ done", "good"),
    "failed": ("✗ failed", "bad"),
    "cancelled": ("⊘ cancelled", "dim"),
}
LEVEL_MARKS: dict[str, Piece] = {
    "debug": ("D", "dim"),
    "info": ("I", ""),
    "warning": ("W", "warn"),
    "error": ("E", "bad"),
    "critical": ("C", "bad"),
}


def spark(values: Iterable[float], width: int, low: float = 0.0, high: float | None = None) -> str:
    """The newest `width` values as blocks, the newest on the right; the scale ends at `high`, or at the highest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0) if high is None else high
    scale = (len(BLOCKS) - 2) / (top - low) if top > low else 0.0
    blocks = (BLOCKS[1 + max(0, min(len(BLOCKS) - 2, round((value - low) * scale)))] for value in shown)
    return "".join(blocks).rjust(width)


def bar(fraction: float, width: int) -> str:
    """A bar that fills `width` characters at 1, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (EIGHTHS[rest] if rest else "")).ljust(width)


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


def load_look(value: float | None) -> Look:
    """For percents of something that may run out."""
    return "" if value is None or value < 75 else "warn" if value < 92 else "bad"


def duration(seconds: float | None) -> str:
    """At most five characters up to a hundred days: 0.4s, 12s, 3m20, 2h05, 3d04."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if seconds < 3600 - 0.5:
        whole = round(seconds)
        return f"{whole // 60}m{whole % 60:02}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours < 48 else f"{hours // 24}d{hours % 24:02}"


def ago(time_ms: int, now_s: float | None = None) -> str:
    """How long ago that was (Unix ms): now, 12s ago, 3m20 ago."""
    past_s = (time.time() if now_s is None else now_s) - time_ms / 1000
    return "now" if past_s < 1 else f"{duration(past_s)} ago"


def clock(time_ms: int) -> str:
    """Time of day on this machine."""
    return time.strftime("%H:%M:%S", time.localtime(time_ms / 1000))


def watts(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} W" if value < 10 else f"{value:.0f} W" if value < 1000 else f"{value / 1000:.1f} kW"


def size(mib: float | None) -> str:
    """MiB up to a thousand, then GiB: 98 MiB, 4.7 GiB, 128 GiB."""
    if mib is None:
        return ""
    if mib < 1000:
        return f"{mib:.0f} MiB"
    return f"{mib / 1024:.1f} GiB" if mib < 102_400 else f"{mib / 1024:.0f} GiB"


def plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else "".join(text for text, _ in cell)


def joined(parts: Sequence[Cell], between: str = "  ") -> tuple[Piece, ...]:
    """Cells one after the other; empty ones are left out."""
    pieces: list[Piece] = []
    for part in parts:
        if not part or not plain(part):
            continue
        if pieces:
            pieces.append((between, ""))
        pieces.extend([(part, "")] if isinstance(part, str) else part)
    return tuple(pieces)


def first(values: Iterable[str], most: int) -> str:
    """A list in few words: a, b and 3 more."""
    known = list(values)
    shown = ", ".join(islice(known, most))
    return f"{shown} and {len(known) - most} more" if len(known) > most else shown
