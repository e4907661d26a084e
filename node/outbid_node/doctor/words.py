"""Making findings, and writing numbers for people."""

from __future__ import annotations

from collections.abc import Sequence

from outbid_contracts.doctor import Finding


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level="ok", found=found)


def note(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check=check, level="note", found=found, remedy=remedy)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level="warning", found=found, remedy=remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    return Finding(check=check, level="problem", found=found, remedy=remedy)


def split(message: str, remedy: str) -> tuple[str, str]:
    """Our errors say what is wrong, a semicolon, what to do. `remedy` is for one that only says what is wrong."""
    found, _, advice = message.partition("; ")
    return found, sentence(advice) if advice else remedy


def sentence(text: str) -> str:
    """With a capital, unless it begins with a command or a name in code marks, and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def some(items: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 4 more`"""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def size(mib: float) -> str:
    if mib < 1024:
        return f"{mib:.0f} MiB"
    return f"{mib / 1024:.1f} GiB" if mib < 1024**2 else f"{mib / 1024**2:.1f} TiB"


def duration(seconds: float) -> str:
    """Two digits are enough: `0.4 ms`, `12 s`, `3 h`."""
    if seconds < 0.0095:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 0.95:
        return f"{seconds * 1e3:.0f} ms"
    for limit, unit, name in ((10, 1, ".1f s"), (120, 1, ".0f s"), (7200, 60, ".0f min"), (172_800, 3600, ".0f h")):
        if seconds < limit:
            form, _, word = name.partition(" ")
            return f"{seconds / unit:{form}} {word}"
    return f"{seconds / 86_400:.0f} days"
