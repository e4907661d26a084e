"""The daemon's log for those who look on: the last lines are remembered, and new ones go out while somebody wants them.

Administrators read these on other machines. Log lines name jobs, nodes, models and files; prompts, answers and keys are
in none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from outbid_contracts.ids import NodeId
from outbid_contracts.live import LogLevel, LogLine
from outbid_node.logs import fields_of
from outbid_node.looking.rate import Rate

REMEMBERED = 200
LINES_S = 100
"""As many lines a second go out; a person reads far fewer."""

MAX_TEXT = 2000
MAX_FIELD = 500
MAX_FIELDS = 20

OURS = ("outbid", "asyncio")
"""Loggers whose lines count: a program that embeds a node has others, which are its own affair."""

SILENT = "outbid_node.client"
"""The bus says here what it could not send. To send that as well would never end."""

_LEVELS: tuple[tuple[int, LogLevel], ...] = (
    (logging.CRITICAL, "critical"),
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
    (logging.INFO, "info"),
)


class LogTap(logging.Handler):
    """`emit` is called from any thread and never blocks or fails; `send` is called on the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted_from: int | None = None
        """Lines from this level up are sent; None: nobody wants any."""
        self.send: Callable[[LogLine], None] = lambda line: None
        self.node, self.name_of_node = NodeId(""), ""
        self.untellable = 0
        self._lines: deque[LogLine] = deque(maxlen=REMEMBERED)
        self._rate = Rate(LINES_S)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inside = threading.local()

    def install(self) -> None:
        self._loop = asyncio.get_running_loop()
        logging.getLogger().addHandler(self)

    def remove(self) -> None:
        logging.getLogger().removeHandler(self)
        self._loop = None

    def last(self, level: int, limit: int) -> list[LogLine]:
        """The oldest first."""
        return [self._signed(line) for line in list(self._lines) if number(line) >= level][-limit:]

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(OURS) or getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            self._take(record)
        except Exception:  # a line that cannot be told must not be the end of whoever wrote it
            self.untellable += 1
        finally:
            self._inside.now = False

    def _take(self, record: logging.LogRecord) -> None:
        line = line_of(record)
        self._lines.append(line)
        wanted, loop = self.wanted_from, self._loop
        if wanted is None or record.levelno < wanted or record.name == SILENT or loop is None:
            return
        if self._rate.take():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._send, line, self._rate.left_out())

    def _send(self, line: LogLine, dropped: int) -> None:
        self._inside.now = True
        try:
            self.send(self._signed(line, dropped))
        finally:
            self._inside.now = False

    def _signed(self, line: LogLine, dropped: int = 0) -> LogLine:
        """The first lines are written before the node knows its own id."""
        return LogLine(
            node=self.node,
            name=self.name_of_node,
            time_ms=line.time_ms,
            level=line.level,
            action=line.action,
            text=line.text,
            fields=line.fields,
            dropped=dropped,
        )


def line_of(record: logging.LogRecord) -> LogLine:
    fields = {key: _plain(value) for key, value in list(fields_of(record).items())[:MAX_FIELDS]}
    if record.exc_info and record.exc_info[0] is not None:
        fields["traceback"] = _text(logging.Formatter().formatException(record.exc_info))[-MAX_TEXT:]
    return LogLine(
        node=NodeId(""),
        name="",
        time_ms=int(record.created * 1000),
        level=level_of(record.levelno),
        action=_text(getattr(record, "action", record.name))[:MAX_FIELD],
        text=_text(record.getMessage())[:MAX_TEXT],
        fields=fields,
    )


def level_of(number: int) -> LogLevel:
    return next((level for least, level in _LEVELS if number >= least), "debug")


def number(line: LogLine) -> int:
    return logging.getLevelNamesMapping()[line.level.upper()]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    return _text(value)[:MAX_FIELD]


def _text(value: Any) -> str:
    """What no encoding carries (a surrogate in a file's name) becomes a question mark."""
    return str(value).encode("utf-8", "replace").decode()
