"""One nats-server under supervision.

| from | to | when |
|---|---|---|
| stopped | starting | `start()` |
| starting | up | its last port says INFO with our server name |
| starting, up | down | it exited, or did not get ready in time |
| down | starting | after a pause that doubles with each short life |
| down | failed | `GIVE_UP` short lives in a row (a role may ask never to give up) |
| any | stopped | `stop()` |
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from outbid_contracts.errors import OutbidError
from outbid_node.bus import orphan
from outbid_node.bus.files import tail, write_private

log = logging.getLogger("outbid.bus")

READY_S = 30.0
"""JetStream reads its whole store before it listens, which may take long on a memory card."""
RELOAD_S = 2.0
STOP_S = 3.0
SHORT_LIFE_S = 5.0
GIVE_UP = 10
FIRST_TRIES = 4
_POLL_S = 0.004

State = Literal["stopped", "starting", "up", "down", "failed"]


class ServerFailed(OutbidError):
    """A nats-server of this node does not run; its last words are in the message."""

    code = "server_failed"


class Role(Protocol):
    """What a server is for. `name` is the stem of its files; `ready_at` is the port that it opens last, `ready_tls` how
    to speak TLS there if it must be spoken first.
    """

    name: str
    server_name: str
    gives_up: bool

    @property
    def ready_at(self) -> tuple[str, int]: ...

    @property
    def ready_tls(self) -> ssl.SSLContext | None: ...

    def prepare(self, last_words: str) -> None:
        """Called before each launch with the reason the previous one ended; may choose other ports or settings."""

    def config(self) -> str: ...

    def gave_up(self, error: OutbidError) -> None: ...


class Server:
    def __init__(self, role: Role, folder: Path, binary: Path) -> None:
        self.role = role
        self.state: State = "stopped"
        self.restarts = 0
        self.config_file = (folder / f"{role.name}.conf").absolute()
        self.log_file = self.config_file.with_suffix(".log")
        self._errors = self.config_file.with_suffix(".err")
        self._pid_file = self.config_file.with_suffix(".pid")
        self._argv = [str(binary), "-c", str(self.config_file)]
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._words = ""
        self._lock = asyncio.Lock()
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def last_words(self) -> str:
        return self._words

    async def start(self) -> None:
        """Returns once it answers. Raises what the role raises, or ServerFailed with the server's last words."""
        leftover = await asyncio.to_thread(orphan.kill_leftover, self._pid_file)
        if leftover is not None:
            self._log(logging.WARNING, "orphan_killed", f"killed pid {leftover}, left by an earlier run", pid=leftover)
        for left in reversed(range(FIRST_TRIES)):
            try:
                async with self._lock:
                    await self._launch()
                break
            except ServerFailed:
                if not left:
                    raise
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.role.name}")

    async def apply(self) -> None:
        """Make the running server take up its role's configuration; one that is down will at its next launch."""
        async with self._lock:
            text = self.role.config()
            if self.state != "up" or (self.config_file.exists() and self.config_file.read_text() == text):
                return
            if sys.platform != "win32":
                mark = self._log_size()
                write_private(self.config_file, text)
                self._signal(signal.SIGHUP)
                if await self._reloaded(mark):
                    return
                self._log(logging.WARNING, f"{self.role.name}_reload_failed", self._last_words())
        await self.restart()

    async def restart(self) -> None:
        """End the process; the supervisor starts it again at once with its role's configuration."""
        async with self._lock:
            await self._end()

    async def stop(self) -> None:
        if self._supervisor:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        async with self._lock:
            await self._end()
            self.state = "stopped"

    def health(self) -> dict[str, Any]:
        seen = {"state": self.state, "pid": self.pid, "restarts": self.restarts, "last_error": self._last_error()}
        return {key: value for key, value in seen.items() if value is not None}

    # -- the life of the process, all under the lock -------------------------------------------------------------

    async def _launch(self) -> None:
        self.state = "starting"
        self.role.prepare(self._words)
        write_private(self.config_file, self.role.config())
        began = time.monotonic()
        self._process = orphan.spawn(self._argv, self._errors)
        self._exited = asyncio.Event()
        self._watch(self._process, self._exited)
        with suppress(OSError):  # a full disk: on Linux the system ends it with us anyway
            orphan.record(self._pid_file, self._process, self._argv)
        try:
            async with asyncio.timeout(READY_S):  # wait_for of Python 3.11 may swallow a cancellation
                await self._answers()
        except TimeoutError:
            await self._end()
            self._words = f"it did not answer within {READY_S:.0f} s"
        if self._exited.is_set():
            self.state = "down"
            raise ServerFailed(f"the {self.role.name} (nats-server) does not start: {self._words}")
        self.state, self._words = "up", ""
        took_ms = (time.monotonic() - began) * 1e3
        self._log(logging.INFO, f"{self.role.name}_up", f"up on {self.role.ready_at[1]}", ms=round(took_ms, 1))

    def _watch(self, process: subprocess.Popen[bytes], exited: asyncio.Event) -> None:
        """A thread of its own waits for the end: it works on every system, in every kind of event loop."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            if process is self._process:
                self._words = self._last_words()
            exited.set()

        def wait() -> None:
            process.wait()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended)

        threading.Thread(target=wait, name=f"wait for {self.role.name}", daemon=True).start()

    async def _answers(self) -> None:
        """Until the last port it opens greets with our name, or the process ended. A port that answers is not enough:
        it could be another server's.
        """
        tls = self.role.ready_tls
        while not self._exited.is_set():
            if await _greeting(*self.role.ready_at, tls) == self.role.server_name:
                return
            await asyncio.sleep(_POLL_S)

    async def _end(self) -> None:
        if self._process is None or self._exited.is_set():
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._exited.wait()
        except TimeoutError:
            self._process.kill()
            await self._exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    async def _supervise(self) -> None:
        short_lives = 0
        while True:
            began = time.monotonic()
            await self._exited.wait()
            self.state = "down"
            short_lives = 0 if time.monotonic() - began > SHORT_LIFE_S else short_lives + 1
            self._log(logging.WARNING, f"{self.role.name}_down", self._words, restarts=self.restarts)
            while True:
                if short_lives > GIVE_UP and self.role.gives_up:
                    return self._give_up()
                await asyncio.sleep(min(5.0, 0.05 * 2**short_lives) if short_lives > 1 else 0)
                self.restarts += 1
                try:
                    async with self._lock:
                        await self._launch()
                    break
                except ServerFailed:
                    pass  # its words are kept already
                except OutbidError as error:
                    self._words = error.message
                except Exception as error:  # a supervisor that dies silently is worse than any reason it had
                    self._words = f"{type(error).__name__}: {error}"
                self.state = "down"
                short_lives += 1
                self._log(logging.ERROR, f"{self.role.name}_start_failed", self._words, restarts=self.restarts)

    def _give_up(self) -> None:
        self.state = "failed"
        error = ServerFailed(f"the {self.role.name} (nats-server) ended {GIVE_UP} times in a row: {self._words}")
        self._log(logging.ERROR, f"{self.role.name}_failed", error.message)
        self.role.gave_up(error)

    # -- what it says --------------------------------------------------------------------------------------------

    def _log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    async def _reloaded(self, mark: int) -> bool:
        """Whether the log says, after `mark`, that the configuration was taken up."""
        until = time.monotonic() + RELOAD_S
        while time.monotonic() < until and not self._exited.is_set():
            size = self._log_size()
            said = tail(self.log_file, size - mark if size >= mark else size)
            if "Reloaded server configuration" in said:
                return True
            if "Failed to reload" in said:
                return False
            await asyncio.sleep(_POLL_S)
        return False

    def _own_lines(self) -> list[str]:
        if self._process is None:
            return []
        mine = f"[{self._process.pid}] "
        return [line.removeprefix(mine) for line in tail(self.log_file).splitlines() if line.startswith(mine)]

    def _last_error(self) -> str | None:
        lines = [line for line in self._own_lines() if "[ERR]" in line or "[FTL]" in line]
        return lines[-1] if lines else None

    def _last_words(self) -> str:
        """Why it ended: the fatal line, else the last lines of what it wrote."""
        lines = self._own_lines()
        fatal = [line.partition("[FTL] ")[2] for line in lines if "[FTL]" in line]
        if fatal:
            return fatal[-1]
        said = "\n".join([*tail(self._errors, 2000).splitlines()[-8:], *lines[-3:]]).strip()
        status = self._process.returncode if self._process else None
        return f"ended with status {status}; last said: {said}"

    def _log(self, level: int, action: str, text: str, **extra: Any) -> None:
        log.log(level, "%s: %s", self.role.name, text, extra={"action": action, **extra})


async def _greeting(host: str, port: int, tls: ssl.SSLContext | None) -> str | None:
    """The server's name in the INFO line that every NATS port sends first; None if nothing, or no NATS, is there."""
    try:
        async with asyncio.timeout(2.0 if tls else 0.5):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                line = await reader.readline()
            finally:
                writer.close()
        name = json.loads(line.removeprefix(b"INFO "))["server_name"]
        return name if isinstance(name, str) else None
    except (OSError, ValueError, KeyError, TypeError, TimeoutError):
        return None
