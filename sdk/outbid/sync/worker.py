"""One thread with one event loop for one mesh: whatever is called from other threads is done there."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from outbid.mesh import Mesh

T = TypeVar("T")

CLOSE_S = 60.0
"""A node of our own that stops takes up to 20 s."""


class Worker:
    """A mesh and the thread it lives in. Opened with the first call, closed by `close`, when nobody has it any more, or
    when the interpreter ends.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._thread = _LoopThread(mesh)
        self._close = weakref.finalize(self, self._thread.close)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it there and wait for it. KeyboardInterrupt, or what else is raised in the waiting thread, cancels it."""
        try:
            self._thread.open()
        except BaseException:
            work.close()
            raise
        return self._thread.run(work)

    def open(self) -> None:
        """Raises what entering the mesh raises."""
        self._thread.open()

    def close(self) -> None:
        self._close()


class _LoopThread:
    """Does not know the Worker, so that the Worker can be dropped."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self) -> None:
        if self._loop is not None and threading.current_thread() is self._thread:
            raise RuntimeError(
                "this is the mesh's own thread (on_event and progress are called on it); ask from another"
            )
        with self._lock:
            if self._closed:
                raise RuntimeError("the mesh is closed")
            if self._loop is not None:
                return
            self._start()
            try:
                self.run(self._mesh.__aenter__())
            except BaseException:
                self._stop()
                raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    def close(self) -> None:
        """From any thread; in its own it cannot wait for its end."""
        if threading.current_thread() is self._thread:
            threading.Thread(target=self.close, name="outbid-close").start()
            return
        with self._lock:
            opened, self._closed = self._loop is not None, True
            if not opened or self._thread is None or not self._thread.is_alive():
                return
            assert self._loop is not None
            try:
                closing = self._mesh.__aexit__(None, None, None)
                asyncio.run_coroutine_threadsafe(closing, self._loop).result(CLOSE_S)
            finally:
                self._stop()

    def _start(self) -> None:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(loop,), name="outbid", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop = None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Until it is stopped; then end what is left."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
