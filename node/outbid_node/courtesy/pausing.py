"""The person's own switch, `outbid pause`. It is a file, so that a restart does not undo it."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import datetime
from pathlib import Path

from outbid_node.courtesy.parts import NOTHING, Part
from outbid_node.courtesy.readings import Pause, Readings

FILE = "paused.json"


class Paused:
    """The rule."""

    def judge(self, readings: Readings) -> Part:
        pause = readings.pause
        if pause is None or (pause.until_s is not None and readings.clock_s >= pause.until_s):
            return NOTHING
        until = "until `outbid resume`" if pause.until_s is None else f"until {_time(pause.until_s, readings.clock_s)}"
        return Part(said=f"paused {until}", refuse=True, gives_back=True, frees_memory=True)


def load(state: Path) -> Pause | None:
    """None if there is none. A file that makes no sense counts as a pause without end: the person wanted one."""
    try:
        told = json.loads((state / FILE).read_text("utf-8"))["until_s"]
        return Pause(None if told is None else _finite(told))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Pause(None)


def save(state: Path, pause: Pause | None) -> None:
    """Raises OSError."""
    file = state / FILE
    if pause is None:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        return
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps({"until_s": pause.until_s}), "utf-8")
    beside.replace(file)


def _finite(number: object) -> float:
    found = float(number)  # type: ignore[arg-type]
    if not math.isfinite(found):
        raise ValueError("not a time")
    return found


def _time(until_s: float, now_s: float) -> str:
    """With its day, if that is not today's."""
    form = "%H:%M" if until_s - now_s < 12 * 3600 else "%a %d %b %H:%M"
    try:
        return datetime.fromtimestamp(until_s).strftime(form)
    except (ValueError, OverflowError, OSError):
        return "some far day"
