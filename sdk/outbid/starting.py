"""A node inside the host program: `Mesh.start_node`. The daemon runs as a child process that ends with its host.

It notices by its standard input: the host holds the other end, which the system closes however the host ends, SIGKILL
included.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from outbid.connection import local_node
from outbid_contracts.errors import OutbidError

START_TIMEOUT_S = 60.0
"""A machine that is short of everything needs 20 s."""

STOP_S = 20.0
"""Running jobs get `limits.grace_s` (5 s) of it."""

LOOK_S = 0.02
LAST_LINES = 5
LOG_BYTES = 8192

_NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


class NodeFailed(OutbidError):
    """The node did not start; its last words are in the message."""

    code = "node_failed"


class OwnNode:
    """A node of this program's own: a mesh by itself, or beside another one of this program in its mesh.

    Its state is in `state`, or in a folder that is removed at the end. It knows nothing of this process's OUTBID_
    variables, and of the user's meshes only where `mesh` names one of them.
    """

    def __init__(
        self,
        *,
        name: str,
        state: str | os.PathLike[str] | None = None,
        mesh: str | None = None,
        beside: OwnNode | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._temporary = state is None
        self.state = Path(state or Path(tempfile.gettempdir(), f"outbid-{secrets.token_hex(8)}")).absolute()
        self.name = name
        self.mesh: str = beside.mesh if beside else mesh or f"{name}-{secrets.token_hex(4)}"
        self.keyring: Path | None = beside.keyring if beside else None if mesh else self.state / "keyring"
        """Where the key of its mesh is; None: with the user's."""
        self.log = self.state / "node.log"
        self._settings = settings or {}
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    async def arrive(self) -> Path:
        """Start it; its state folder, once it is up. Raises NodeFailed."""
        try:
            await asyncio.to_thread(self._spawn)
            await self._until_up()
        except BaseException:
            await self.leave()
            raise
        return self.state

    async def leave(self) -> None:
        """Stop it in order, in a thread that finishes that also where this is cancelled."""
        process, self._process = self._process, None
        try:
            ending = asyncio.to_thread(self._end, process)
            await asyncio.shield(ending)
        except RuntimeError:  # the interpreter ends, and gives no threads any more
            self._end(process)

    def _spawn(self) -> None:
        self.state.mkdir(parents=True, exist_ok=not self._temporary, mode=0o700)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                process_group=0,  # Ctrl-C in the terminal is for the host
                creationflags=_NEW_GROUP,
            )

    def _command(self) -> list[str]:
        """`-P`: what is called `nats.py` in the host's folder is not meant."""
        command = [sys.executable, "-P", "-m", "outbid_node", "up", "--with-parent", "--json-logs"]
        command += ["--state", str(self.state), "--name", self.name, "--mesh", self.mesh]
        return command + [part for key, value in self._settings.items() for part in ("--set", f"{key}={_text(value)}")]

    def _environment(self) -> dict[str, str]:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
        if self.keyring is not None:
            return plain | {"OUTBID_KEYRING": str(self.keyring)}
        return plain | {key: value for key, value in os.environ.items() if key == "OUTBID_KEYRING"}

    async def _until_up(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._timeout_s
        while not self._is_up():
            if (status := self._process.poll()) is not None:
                raise NodeFailed(f"the node did not start (exit status {status}): {self._last_words()}")
            if time.monotonic() > deadline:
                raise NodeFailed(f"the node was not up within {self._timeout_s:g} s: {self._last_words()}")
            await asyncio.sleep(LOOK_S)

    def _is_up(self) -> bool:
        with suppress(OutbidError):
            return self._process is not None and local_node(self.state).pid == self._process.pid
        return False

    def _last_words(self) -> str:
        """What it logged last; of errors only, if there were any."""
        with suppress(OSError):
            said = [_said(line) for line in self.log.read_bytes()[-LOG_BYTES:].decode(errors="replace").splitlines()]
            bad = [text for level, text in said if level in ("error", "critical")]
            return "; ".join((bad or [text for _, text in said])[-LAST_LINES:]) or "it said nothing"
        return "it left no log"

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # on every system the way to ask it to stop
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._temporary:
            shutil.rmtree(self.state, ignore_errors=True)


def _said(line: str) -> tuple[str, str]:
    """Level and text of one line of the log."""
    with suppress(ValueError, AttributeError):
        entry = json.loads(line)
        return str(entry.get("level", "")), str(entry.get("message", ""))
    return "", line.strip()


def _text(value: Any) -> str:
    """As `--set` takes it: lists with commas, maps as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)
