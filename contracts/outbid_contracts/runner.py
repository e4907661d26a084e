"""What a daemon and its runners say to each other over ZeroMQ (runner DEALER, daemon ROUTER).

A message is a list of frames: [header, payload…]. The header is a MessagePack map tagged by `type`; payload frames
are raw
bytes (an image, a sound) that nobody re-encodes. The runner's side needs only pyzmq and msgpack, so these Structs are
the daemon's reading of the protocol; `outbid_capabilities.runner_kit` is the runner's.

A runner is started as `python -m outbid_capabilities.runner_kit MODULE:CLASS` with OUTBID_RUNNER_ENDPOINT (where to
connect) and OUTBID_RUNNER_TOKEN (its ROUTER identity, random) in its environment, and its standard input held open by
the daemon:
end of file there means the daemon is dead, and the runner exits.
"""

from __future__ import annotations

from typing import Any

import msgspec

PROTOCOL = 1

AttemptKey = str
"""`<job>/<attempt>`: names one attempt within a daemon."""


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    pass


# -- daemon to runner ----------------------------------------------------------------------------------------------


class Load(Header, frozen=True, kw_only=True, tag="load"):
    """Answer to `hello`. `model` is a ModelFile as a map or None; `options` are the capability's settings on this
    node. `batches`: the daemon understands `ends`.
    """

    model: dict[str, Any] | None
    options: dict[str, Any]
    batches: bool = False


class Run(Header, frozen=True, kw_only=True, tag="run"):
    """`files` names the payload frames: the parameters that hold bytes (`Capability.inputs`), then `checkpoint`.

    `heard` False: the caller wants the result only, so progress and pieces that cost something may be left out.
    """

    attempt: AttemptKey
    capability: str
    params: dict[str, Any]
    files: tuple[str, ...] = ()
    heard: bool = True


class RunBatch(Header, frozen=True, kw_only=True, tag="runs"):
    """Several at once, none with payload frames: sending costs more than a short job does, each time."""

    items: list[Run]


class Cancel(Header, frozen=True, kw_only=True, tag="cancel"):
    """Stop this attempt within one token or step; the runner answers `cancelled` (or `done`, if it was quicker).

    `save`: give a last checkpoint first, if it can; the job goes on elsewhere.
    """

    attempt: AttemptKey
    save: bool = False


class Ping(Header, frozen=True, kw_only=True, tag="ping"):
    n: int


class Stop(Header, frozen=True, kw_only=True, tag="stop"):
    """Exit now; running attempts are given up."""


# -- runner to daemon ----------------------------------------------------------------------------------------------


class Hello(Header, frozen=True, kw_only=True, tag="hello"):
    """`batches`: the runner understands `runs`."""

    pid: int
    protocol: int
    batches: bool = False


class LoadProgress(Header, frozen=True, kw_only=True, tag="loading"):
    fraction: float | None = None
    note: str = ""


class Ready(Header, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded. `rates` are measured seconds per work unit (a short warm-up), `info` is for people."""

    slots: int
    load_s: float
    rates: dict[str, float] = {}
    fixed_s: float | None = None
    memory_mib: float | None = None
    gpu_memory_mib: float | None = None
    info: dict[str, Any] = {}


class ChunkData(Header, frozen=True, kw_only=True, tag="chunk"):
    attempt: AttemptKey
    data: dict[str, Any]


class ChunkBatch(Header, frozen=True, kw_only=True, tag="chunks"):
    """Chunks of several attempts made in one step (continuous batching): [[attempt, data], …], no payload frames."""

    items: list[tuple[AttemptKey, dict[str, Any]]]


class StepProgress(Header, frozen=True, kw_only=True, tag="progress"):
    attempt: AttemptKey
    step: int
    steps: int
    note: str = ""
    eta_s: float | None = None


class CheckpointData(Header, frozen=True, kw_only=True, tag="checkpoint"):
    """What another runner of this capability and model needs to go on after `step`; one payload frame. It replaces
    the one before.
    """

    attempt: AttemptKey
    step: int
    steps: int


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a runner keeps what an attempt had it read (`Capability.reads`): in its cache number `slot`, from 0, in
    place of what was there. `reused`: by unit of work the share (0 to 1) that it held before. `whole`: all of it is
    there now, and of a `done` what it wrote; else nothing that counts.
    """

    slot: int
    reused: dict[str, float] = {}
    whole: bool = True


class RunDone(Header, frozen=True, kw_only=True, tag="done"):
    """`timings` in seconds. `measured` is {unit: [how many, seconds]} actually spent, the estimator's food. `took_s`:
    from when the runner read its `run`; None from one that does not say.

    Payload frames are the artifacts listed in the result, in that order (`Capability.artifacts`).
    """

    attempt: AttemptKey
    result: dict[str, Any]
    timings: dict[str, float] = {}
    measured: dict[str, tuple[float, float]] = {}
    took_s: float | None = None
    kept: Kept | None = None


class RunFailed(Header, frozen=True, kw_only=True, tag="failed"):
    """`code` is one of the stable error codes, or `attempt_failed`; `retry` is False where no node could do it."""

    attempt: AttemptKey
    message: str
    code: str = "attempt_failed"
    traceback: str = ""
    retry: bool = True
    kept: Kept | None = None


class RunCancelled(Header, frozen=True, kw_only=True, tag="cancelled"):
    attempt: AttemptKey
    kept: Kept | None = None


End = RunDone | RunFailed | RunCancelled


class EndBatch(Header, frozen=True, kw_only=True, tag="ends"):
    """Of several attempts, none with payload frames."""

    items: list[End]


class Pong(Header, frozen=True, kw_only=True, tag="pong"):
    n: int


class Crashed(Header, frozen=True, kw_only=True, tag="crashed"):
    """Last words of a runner that is about to exit: it could not load, or something outside an attempt broke."""

    message: str
    traceback: str = ""
    code: str = "runner_crashed"


class Log(Header, frozen=True, kw_only=True, tag="log"):
    level: str
    message: str


ToRunner = Load | Run | RunBatch | Cancel | Ping | Stop
FromRunner = (
    Hello
    | LoadProgress
    | Ready
    | ChunkData
    | ChunkBatch
    | StepProgress
    | CheckpointData
    | RunDone
    | RunFailed
    | RunCancelled
    | EndBatch
    | Pong
    | Crashed
    | Log
)
