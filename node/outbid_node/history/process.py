"""The process that keeps a daemon's history: `python -m outbid_node.history.process FOLDER SETTINGS`.

It is one of its own because DuckDB's limits do not bind everything that a query of a person can ask for (one that
builds a long text took 14 GB under a memory limit of 256 MB), and because a fault in native code, or the interpreter
lock held while 100,000 rows become Python objects, must not stop a daemon. It ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from outbid_node.history import frames
from outbid_node.history.damage import Unusable
from outbid_node.history.export import export
from outbid_node.history.frames import Answer, Ask, Batch, Opened, Read, Refused, Report, Settings, Written
from outbid_node.history.limits import keep_small
from outbid_node.history.retention import Retention
from outbid_node.history.rollup import roll_ups
from outbid_node.history.store import Store
from outbid_node.history.writer import Writer

READERS, ASKERS = 2, 2


class Process:
    def __init__(self, folder: Path, settings: Settings, orders: BinaryIO, reports: BinaryIO) -> None:
        self._orders, self._reports = orders, reports
        self._sending = threading.Lock()
        self.store = Store(folder)
        self.writer = Writer(self.store, self._written, self._state)
        self.retention = Retention(self.store, self.writer, settings)
        self.writer.tasks += [self.retention.task, *(roll.task for roll in roll_ups(settings))]
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="history-read")
        self._askers = ThreadPoolExecutor(ASKERS, thread_name_prefix="history-ask")

    def run(self) -> None:
        """Until the daemon closes its end."""
        self.writer.start()
        while (data := frames.read_frame(self._orders)) is not None:
            order = frames.order_of(data)
            if isinstance(order, Batch):
                self.writer.add(order)
            elif isinstance(order, Read):
                self._readers.submit(self._answer, order.id, partial(self._read, order))
            else:
                self._askers.submit(self._answer, order.id, partial(self._ask, order))
        self.writer.close()

    def _answer(self, id: int, act: Callable[[], bytes]) -> None:
        try:
            self._send(Answer(id, act()))
        except Unusable as error:
            self._send(Refused(id, str(error), unusable=True))
        except Exception as error:
            self.writer.suspect(error)
            self._send(Refused(id, f"{type(error).__name__}: {error}", unusable=False))

    def _read(self, order: Read) -> bytes:
        with self.store.reading() as connection:
            return frames.pack_rows(connection.execute(order.sql, order.parameters).fetchall())

    def _ask(self, order: Ask) -> bytes:
        from outbid_node.history import sandbox  # what few ask for is loaded when they do

        with self.store.reading() as connection:
            if order.verb == "export":
                return export(connection, order.payload, self.store.out)
            return sandbox.answer(connection, order.verb, order.payload, self.store.out)

    def _written(self, seq: int, dropped: int) -> None:
        self._send(Written(seq, dropped))

    def _state(self, usable: bool) -> None:
        self._send(Opened(usable, self.store.trouble))

    def _send(self, report: Report) -> None:
        data = frames.framed(report)
        with self._sending, contextlib.suppress(OSError, ValueError):  # the daemon is gone
            self._reports.write(data)
            self._reports.flush()


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_small()
    folder, settings = Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Settings)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as reports:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not come between the frames
        Process(folder, settings, sys.stdin.buffer, reports).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
