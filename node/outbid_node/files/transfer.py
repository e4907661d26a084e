"""One transfer: the threads that fetch, who joins and who is dropped, how fast it goes. Lives on the daemon's loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import Protocol

from outbid_contracts.errors import NoSpace, OutbidError, PullFailed
from outbid_node.files.assembly import Assembly

log = logging.getLogger(__name__)

RATE_OVER_S = 5.0
JOIN_S = 1.0


class Source(Protocol):
    """Fetches pieces in a thread of its own: `run` until all is here or it fails. `dropped` is set to end it. `who`
    tells several connections to the source `name` apart.
    """

    name: str
    who: str
    fetched: int
    dropped: bool

    def run(self) -> None: ...


class Transfer:
    """`add` sources, `wait` for what happens, `close` in any case."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.failures: dict[str, OutbidError] = {}
        """Why sources were given up."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._live: dict[Source, threading.Thread] = {}
        self._history: deque[tuple[float, int]] = deque(maxlen=64)
        self._fatal: OutbidError | None = None
        assembly.on_wrong = self._wrong
        assembly.on_end = self._wake
        assembly.start()

    def add(self, source: Source) -> None:
        thread = threading.Thread(target=self._run, args=(source,), name=f"outbid pull {source.name}", daemon=True)
        self._live[source] = thread
        thread.start()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted({source.name for source, thread in self._live.items() if thread.is_alive()}))

    @property
    def over(self) -> bool:
        return self.assembly.finished.is_set()

    def check(self) -> None:
        """Raises what the transfer failed with."""
        failure = self.assembly.failure or self._fatal
        if failure is not None:
            raise failure

    async def wait(self, seconds: float) -> None:
        """Until something happened, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def rate(self) -> float:
        """Bytes a second, of late."""
        now, here = time.monotonic(), self.assembly.pieces.bytes_here
        self._history.append((now, here))
        began = next(((when, was) for when, was in self._history if now - when <= RATE_OVER_S), (now, here))
        return max(0.0, (here - began[1]) / (now - began[0])) if now > began[0] else 0.0

    async def close(self) -> None:
        self.assembly.pieces.stop()
        for source in self._live:
            source.dropped = True
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        """A source may wait for a byte that never comes; since `stop`, none of them begins to write any more."""
        until = time.monotonic() + JOIN_S
        for thread in self._live.values():
            thread.join(max(0.0, until - time.monotonic()))
        self.assembly.close()

    # -- in the sources' threads ----------------------------------------------------------------------------------

    def _run(self, source: Source) -> None:
        try:
            source.run()
        except NoSpace as error:
            self._fatal = error
        except OutbidError as error:
            self._gave_up(source, error)
        except OSError as error:
            self._gave_up(source, PullFailed(f"{source.name}: {error.strerror or error or type(error).__name__}"))
        except Exception as error:
            log.exception("fetching from %s failed", source.name, extra={"action": "pull_source_failed"})
            self._gave_up(source, PullFailed(f"{source.name}: {type(error).__name__}: {error}"))
        finally:
            self.assembly.pieces.give_back(source.who)
            self._wake()

    def _gave_up(self, source: Source, error: OutbidError) -> None:
        log.info("%s is no source any more: %s", source.name, error.message, extra={"action": "pull_source_dropped"})
        self.failures.setdefault(source.name, error)

    def _wrong(self, name: str) -> None:
        self.failures[name] = PullFailed(f"{name} sent wrong bytes")
        for source in list(self._live):
            if source.name == name:
                source.dropped = True

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:
            log.debug("the loop is closed", extra={"action": "pull_after_end"})
