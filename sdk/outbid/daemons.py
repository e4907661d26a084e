"""Nodes that a face starts for a while, as a person would: `outbid up` in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STOP_S = 15.0


class Daemon:
    """One node with its own state folder. What it says goes to the file `log`.

    It knows nothing of this process's OUTBID_ variables but those in `environment`.
    """

    def __init__(
        self, state: Path, name: str, mesh: str, flags: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.state = state
        self.name = name
        self.arguments = ["up", "--state", str(state), "--name", name, "--mesh", mesh, *flags]
        self.log = state.with_name(f"{state.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = environment or {}

    def spawn(self) -> None:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "outbid_node", *self.arguments],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=plain | dict(self._environment),
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll() if self.process else None

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def stop(daemons: Iterable[Daemon]) -> None:
    """Ask all to stop, then kill whoever has not within STOP_S."""
    running = [daemon.process for daemon in daemons if daemon.process is not None and daemon.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
