"""The open DuckDB file.

Only the writer's thread opens, writes and closes it; any other thread may read, through `reading()`. What holds for the
whole instance is fixed when it is opened: one thread, little memory, no access to files but its own and those in
`out`, no change of settings. So a query of a person cannot reach further than the history, whoever checks it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from outbid_node.history.damage import NewerFile, Unusable, is_locked, is_outside, put_aside
from outbid_node.history.migrations import MIGRATIONS, migrate

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

FILE = "history.duckdb"
OUT = "history-out"

MEMORY_SHARE, MEMORY_MIB = 1 / 8, 256
"""What DuckDB may keep in memory: that share of the machine's, at most so much."""

SPILL_MIB = 512
"""What large queries may put on the disk for a while."""

REWRITING_S = 20.0
"""How long a reader waits while the file is opened or rewritten, and a rewriter for readers."""

LOCKED_S = 5.0
"""How long an earlier process of this node may take to close the file: its daemon may have been killed just now."""


class Store:
    def __init__(self, folder: Path, migrations: tuple[str, ...] = MIGRATIONS) -> None:
        self.file = folder / FILE
        self.out = folder / OUT
        """The only folder that SQL can read and write: exports and answers pass through it."""
        self.unusable = ""
        """Why there is no history now, in a sentence for people."""
        self.replaced = ""
        """What became of an earlier file, in a sentence for people."""
        self._migrations = migrations
        self._root: DuckDBPyConnection | None = None
        self._readers = 0
        self._opening = True
        """It will be open soon: readers wait."""
        self._changed = threading.Condition()

    @property
    def is_open(self) -> bool:
        return self._root is not None

    @property
    def trouble(self) -> str:
        """What is or was wrong, for people; empty if nothing was."""
        return self.unusable or self.replaced

    def open(self) -> DuckDBPyConnection:
        """The writer's connection. A damaged or newer file is put aside and a new one begun. Raises Unusable."""
        import duckdb

        try:
            try:
                root = self._connected()
            except NewerFile as error:
                self._put_aside("newer", f"the history was written by a later version of Outbid ({error})")
                root = self._connected()
            except duckdb.Error as error:
                if is_outside(error):
                    raise
                self._put_aside("broken", f"the history could not be read ({_short(error)})")
                root = self._connected()
        except (duckdb.Error, OSError, NewerFile) as error:
            self._settle(None)
            self.unusable = f"there is no history: {_short(error)}"
            raise Unusable(self.unusable) from error
        self.unusable = ""
        self._settle(root)
        return root.cursor()

    def replace(self, why: BaseException) -> DuckDBPyConnection:
        """Put a file aside that turned out to be damaged, and begin a new one. Raises Unusable."""
        self.close(reopening=True)
        with contextlib.suppress(OSError):  # then it is opened again as it is
            self._put_aside("broken", f"the history is damaged ({_short(why)})")
        return self.open()

    def close(self, *, reopening: bool = False) -> None:
        """Its log is worked in. Waits for those who read; who comes later waits, if it is to be opened again."""
        with self._changed:
            root, self._root, self._opening = self._root, None, reopening
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._readers == 0, REWRITING_S)
        if root is not None:
            with contextlib.suppress(Exception):
                root.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[DuckDBPyConnection]:
        """A connection of its own for one reader, in any thread. Raises Unusable."""
        with self._changed:
            self._changed.wait_for(lambda: not self._opening, REWRITING_S)
            root = self._root
            if root is None:
                raise Unusable(self.trouble or "the history is closed")
            self._readers += 1
        try:
            with root.cursor() as cursor:
                yield cursor
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def _settle(self, root: DuckDBPyConnection | None) -> None:
        with self._changed:
            self._root, self._opening = root, False
            self._changed.notify_all()

    def _connected(self) -> DuckDBPyConnection:
        until = time.monotonic() + LOCKED_S
        while True:
            try:
                return self._connect()
            except Exception as error:
                if not is_locked(error) or time.monotonic() > until:
                    raise
            time.sleep(0.05)

    def _connect(self) -> DuckDBPyConnection:
        """Raises duckdb.Error, OSError, NewerFile."""
        import duckdb

        self.out.mkdir(mode=0o700, exist_ok=True)
        if self.file.is_dir():
            raise duckdb.IOException(f"{self.file} is a folder")
        root = duckdb.connect(self.file, config=self._settings())
        try:
            self.file.chmod(0o600)
            migrate(root, self._migrations)
            self._lock_down(root)
        except BaseException as error:
            if isinstance(error, NewerFile):
                root.execute("PRAGMA disable_checkpoint_on_shutdown")
            root.close()
            raise
        return root

    def _settings(self) -> dict[str, Any]:
        memory_mib = min(MEMORY_MIB, int(psutil.virtual_memory().total * MEMORY_SHARE) >> 20)
        return {
            "threads": 1,
            "memory_limit": f"{memory_mib}MiB",
            "temp_directory": str(self.out / "spill"),
            "max_temp_directory_size": f"{SPILL_MIB}MiB",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        }

    def _lock_down(self, root: DuckDBPyConnection) -> None:
        root.execute(f"SET allowed_directories = [{quoted(self.out)}]")
        root.execute("SET enable_external_access = false")
        root.execute("SET lock_configuration = true")

    def _put_aside(self, word: str, why: str) -> None:
        """Raises OSError."""
        aside = put_aside(self.file, word)
        self.replaced = f"{why}; it is kept as {aside.name}, and a new one was begun"


def quoted(text: object) -> str:
    """As a literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def _short(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
