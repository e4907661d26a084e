"""Which texts may be kept. A prompt must never be, and an error may quote it."""

from __future__ import annotations

from outbid_contracts.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    Draining,
    NodeLost,
    NodeUnreachable,
    NoNode,
    NoSpace,
    UnknownCapability,
    UnknownModel,
)

OURS = frozenset(
    error.code
    for error in (
        Busy,
        Cancelled,
        DeadlineExceeded,
        Draining,
        NoNode,
        NodeLost,
        NodeUnreachable,
        NoSpace,
        UnknownCapability,
        UnknownModel,
    )
) | {"blocked", "late", "policy", "no_capability", "no_model", "gone", "silent"}
"""Errors and declines whose text is made by a daemon from names and numbers only. What a runner or a check of
parameters says may quote what was asked, and so may an error that joins the words of several; of those only the code is
kept. (Why nobody bid is in the declines.)
"""

LONGEST = 300


def kept(code: str, text: str) -> str:
    """What of an error's or decline's text goes into the history."""
    return text[:LONGEST] if code in OURS else ""
