"""The runner of `test.*`: does what the request and the settings say, crashes and hangs included."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from outbid_capabilities.runner_kit import Attempt, BlockingRunner, Progress
from outbid_capabilities.testing import counting, filing

FOREVER_S = 100_000


class FakeRunner(BlockingRunner):
    """`test.noop` is answered on the I/O thread, the others by one thread per slot."""

    def load(self, model: dict[str, Any] | None, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
        self._options = options
        self._sent = 0
        self._lock = threading.Lock()
        if options.get("ignore_term"):
            ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # SIG_IGN; Python's own call wants the main thread
        _load_slowly(options.get("slow_load_s", 0.0), progress)
        burn(options.get("burn_s", 0.0))
        if options.get("hang_load"):
            hang()
        crash(options.get("crash_load", ""))
        if options.get("fail_load"):
            raise RuntimeError(options["fail_load"])
        self._children = [_sleeper() for _ in range(options.get("children", 0))]
        return {
            "slots": options.get("slots", 64),
            "rates": {"chunks": 0.0001, "seconds": 1.0},
            "fixed_s": 0.0001,
            "memory_mib": options.get("memory_mib", 1.0),
            "gpu_memory_mib": options.get("gpu_memory_mib", 0.0),
            "info": {
                "device": options.get("device", "cpu"),
                "pid": os.getpid(),
                "children": [child.pid for child in self._children],
            },
        }

    def start(self, attempt: Attempt) -> None:
        if attempt.capability == "test.noop":
            size = attempt.params.get("size", 0)
            attempt.done({}, payloads=(*attempt.files.values(), bytes(size)) if size else tuple(attempt.files.values()))
        else:
            super().start(attempt)

    def run(self, attempt: Attempt) -> dict[str, Any] | None:
        if attempt.capability == "test.steps":
            return counting.run(attempt, self._options)
        if attempt.capability == "test.files":
            filing.run(attempt)
            return None
        params = attempt.params
        begun, paused_s = time.perf_counter(), 0.0
        pieces = _split(params.get("text", ""), params.get("chunks", 1))
        first = min(params.get("first", 0), len(pieces))
        for n in range(first, len(pieces) + 1):
            if n == params.get("crash_after", 0) and self._misbehave(attempt):
                return None
            if n == len(pieces):
                break
            pausing = time.perf_counter()
            stopped = self._pause(attempt)
            paused_s += time.perf_counter() - pausing
            if stopped:
                break
            self._count()
            stamp = {"mono_ns": time.monotonic_ns()} if params.get("stamp") else {}
            attempt.chunk({"text": pieces[n], "n": n, **stamp})
        took = time.perf_counter() - begun
        text = "".join(pieces[first:]) if first else params.get("text", "")
        result = {"text": text, "pid": os.getpid()}
        if not attempt.cancelled.is_set():
            count, each_s = len(pieces) - first, params.get("delay_s", 0.0) + params.get("burn_s", 0.0)
            measured = {"chunks": (count, took - paused_s), "seconds": (count * each_s, paused_s)}
            attempt.done(result, {"total_s": took}, measured)
        return None

    def close(self) -> None:
        if self._options.get("ignore_term"):
            time.sleep(FOREVER_S)

    def _pause(self, attempt: Attempt) -> bool:
        """Take the time of one piece; True if the attempt was cancelled meanwhile."""
        burn(attempt.params.get("burn_s", 0.0))
        delay_s = attempt.params.get("delay_s", 0.0) * self._options.get("pace", 1.0)
        return attempt.cancelled.wait(delay_s) if delay_s else attempt.cancelled.is_set()

    def _count(self) -> None:
        """The crash the settings ask for, after so many chunks of all jobs together."""
        with self._lock:
            if self._options.get("crash") and self._sent == self._options.get("crash_after", 0):
                crash(self._options["crash"], self)
            self._sent += 1

    def _misbehave(self, attempt: Attempt) -> bool:
        """The misbehaviour the request asks for; True if nothing more is to be sent."""
        params = attempt.params
        if any(params.get(name) for name in ("hang", "crash", "silent", "garbage")):
            self._pause(attempt)  # the chunks before it get out
        if params.get("hang"):
            hang()
        crash(params.get("crash", ""))
        if params.get("silent"):
            time.sleep(FOREVER_S)
        if params.get("garbage"):
            self._garbage(attempt, params["garbage"])
            return True
        return False

    def _garbage(self, attempt: Attempt, kind: str) -> None:
        key = attempt.key.encode()
        frames = {
            "bytes": [b"\xc1\xff garbage"],
            "type": [b"\x81\xa4type\xa5dance"],
            "field": [b"\x83\xa4type\xa8progress\xa7attempt" + _text(key) + b"\xa4step\xa3one"],
            "frames": [b"", b"", b""],
            "oversized": [bytes(attempt.params.get("size", 0))],
        }
        if kind in frames:
            self._kit.send_frames(frames[kind])
        elif kind == "chunk":
            attempt.chunk({"text": 1, "n": "one"})
            attempt.cancelled.wait(FOREVER_S)
        else:
            attempt.done({"text": 7, "nonsense": True})


def burn(cpu_s: float) -> None:
    """Spend CPU seconds of this thread."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def hang() -> None:
    """Stop the whole process from answering: a native call that keeps the interpreter's lock."""
    if sys.platform == "win32":
        ctypes.PyDLL("kernel32").Sleep(FOREVER_S * 1000)
    ctypes.PyDLL(None).sleep(FOREVER_S)


def crash(how: str, runner: FakeRunner | None = None) -> None:
    """Die in this way; with a runner, an exception is of the process and not of the attempt."""
    if how == "abort":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        time.sleep(FOREVER_S)  # a signal to oneself may arrive a moment later
    if how == "exit":
        os._exit(3)
    if how == "exception":
        error = RuntimeError("crashed as asked")
        if runner is None:
            raise error
        runner._kit.crash(error)
        time.sleep(FOREVER_S)


def _load_slowly(seconds: float, progress: Progress) -> None:
    steps = 10 if seconds else 0
    for step in range(steps):
        progress(step / steps, "loading slowly")
        time.sleep(seconds / steps)


def _split(text: str, chunks: int) -> list[str]:
    size = -(-len(text) // chunks) if chunks else 0
    return [text[n * size : (n + 1) * size] for n in range(chunks)]


def _text(data: bytes) -> bytes:
    return b"\xd9" + bytes([len(data)]) + data


def _sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER_S})"])
