"""Quiet hours by order, `outbid quiet`. They are a file, so that a restart does not undo them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from outbid_contracts.errors import InvalidRequest
from outbid_node.courtesy.hours import parse
from outbid_node.courtesy.quiet import QuietHours

log = logging.getLogger(__name__)

FILE = "quiet.json"
MOST = 50


def checked(hours: Sequence[str]) -> tuple[str, ...]:
    """Raises InvalidRequest that shows the right form."""
    if len(hours) > MOST:
        raise InvalidRequest(f"more than {MOST} quiet hours are too many")
    try:
        for one in hours:
            parse(one)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return tuple(one.strip() for one in hours)


def take_up(state: Path, quiet: QuietHours) -> None:
    """What was ordered before this start. A file that makes no sense is no order."""
    try:
        told = json.loads((state / FILE).read_text("utf-8"))["hours"]
        quiet.hold(checked([str(one) for one in told]))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, InvalidRequest) as error:
        log.warning("%s cannot be read: %s", FILE, error, extra={"action": "quiet_hours_unreadable"})


def save(state: Path, hours: Sequence[str] | None) -> None:
    """None: no order any more. Raises OSError."""
    file = state / FILE
    if hours is None:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        return
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps({"hours": list(hours)}), "utf-8")
    beside.replace(file)
