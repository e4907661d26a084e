"""The trace of durable jobs: what this daemon did with each of them, for `outbid chaos` and its history checker.

One JSON object a line, in the file that `log.trace` names. Each has `t` (Unix time, ns), `mono` (the machine's
monotonic clock, ns, the same for all its processes), `node`, `boot` and `what`; several daemons may share a file.

| what | fields | when, and by whom |
|---|---|---|
| `up` | `name` | the daemon is up |
| `down` | | it stops in order; noted before anything is taken apart |
| `accepted` | `job`, `heirs`, `capability`, `model`, `held` | owner: the record is on disk, about to acknowledge |
| `recovered` | `job`, `number`, `held` | owner: restarted and took the job on again |
| `adopted` | `job`, `from_owner`, `number`, `held` | new owner: took it over, its record is on disk |
| `inherited` | `job`, `state`, `attempt`, `digest` | new owner: has the end that the one before decided on disk |
| `moved` | `job`, `to` | returning owner: gave it up |
| `awarded` | `job`, `attempt`, `to`, `chunks` | owner: before the award is sent |
| `started` | `job`, `attempt`, `owner`, `capability`, `model`, `running`, `slots` | worker: took the award |
| `stopped` | `job`, `attempt`, `outcome` (done, failed, stopped) | worker: the runner is through; before it settles |
| `settled` | `job`, `attempt`, `by`, `accepted`, `outcome`, `digest` | owner: took or refused it; before it answers |
| `ended` | `job`, `state`, `attempt`, `digest` | owner: the terminal record is on disk |

`held`: it may not start yet (`not_before`, `after`). `running` counts this attempt and those beside it, of the same
capability and model; `slots` is how many there may be. `digest` is `outbid_contracts.digest` of a `done` result, else
empty. `chunks`: how many pieces of earlier attempts this one goes on after; what it settles is joined with those. A job
that its owner finishes from pieces alone is awarded to and settled by the owner. Notes of one daemon stand in the order
in which things happened.
"""

from __future__ import annotations

import os
import time
from typing import Any, Literal

import msgspec

What = Literal[
    "up",
    "down",
    "accepted",
    "recovered",
    "adopted",
    "inherited",
    "moved",
    "awarded",
    "started",
    "stopped",
    "settled",
    "ended",
]


class Trace:
    """Appends notes to the file at `path`; without a path it does nothing.

    Each note is one `write`, so that what was noted survives SIGKILL and daemons do not cut each other's lines.
    It never raises: `lost` counts the notes that could not be written (a full disk).
    """

    def __init__(self, path: str, node: str, boot: str) -> None:
        self.lost = 0
        self._about = {"node": node, "boot": boot}
        self._file: int | None = None
        self.on = bool(path)
        if path:
            self._open(path)

    def _open(self, path: str) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:
            self.lost += 1

    def note(self, what: What, **fields: Any) -> None:
        if not self.on:
            return
        try:
            line = msgspec.json.encode(
                {"t": time.time_ns(), "mono": time.monotonic_ns(), **self._about, "what": what, **fields}
            )
            if self._file is None or os.write(self._file, line + b"\n") <= len(line):
                self.lost += 1
        except (OSError, TypeError, ValueError, msgspec.MsgspecError):
            self.lost += 1

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self.on = None, False
