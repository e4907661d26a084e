"""`test.noop`, `test.echo`, `test.steps` and `test.files`: capabilities that need no model, and misbehave on request.

They are for tests, benchmarks and drills; a node offers them only with `enabled = true` in the section `test`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.artifacts import Artifact
from outbid_contracts.capability import Capability, Machine, ModelFile, Prior

RUNNER = "outbid_capabilities.testing.runner:FakeRunner"
SLOTS = 64

Crash = Literal["", "abort", "kill", "exit", "exception"]
"""abort: SIGABRT from native code; kill: SIGKILL, as the out-of-memory killer does; exit: status 3 without a word;
exception: a Python exception (of the attempt when asked for in a request, of the process when in the settings)."""

Garbage = Literal["", "bytes", "type", "field", "frames", "oversized", "result", "chunk"]
"""bytes: not MessagePack; type: an unknown message; field: a field of the wrong type; frames: an empty message;
oversized: a header of `size` MiB; result and chunk: ones that do not fit their Structs."""


class TestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `test`. What comes after `slow_load_s` are misbehaviours of the process."""

    __test__ = False  # for pytest: not a class of tests

    enabled: bool = False
    slots: Annotated[int, Meta(ge=1)] = SLOTS
    models: tuple[str, ...] = ()
    """Names of models that do nothing; with none, it needs none."""
    memory_mib: float = 1.0
    gpu_memory_mib: float = 0.0
    """What each model says that it takes, and says again when it is loaded."""
    slow_load_s: float = 0.0
    burn_s: float = 0.0
    """CPU seconds spent while loading."""
    fail_load: str = ""
    """What the exception in `load` says."""
    crash_load: Crash = ""
    hang_load: bool = False
    crash: Crash = ""
    crash_after: int = 0
    """Chunks sent by the process before `crash`."""
    ignore_term: bool = False
    """Ignore SIGTERM and the order to stop."""
    children: int = 0
    """Child processes that sleep, to be killed with it."""
    oom_at: int = 0
    """The step after which `test.steps` runs out of memory here."""
    device: str = "cpu"
    """The kind of device it says it runs on."""
    pace: Annotated[float, Meta(gt=0)] = 1.0
    """It takes so many times the seconds that `test.echo` and `test.steps` are asked to take."""


class NoopParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nothing to do. `size` bytes come back beside the result."""

    size: Annotated[int, Meta(ge=0, le=2**30)] = 0
    model: str | None = None


class NoopResult(msgspec.Struct, frozen=True, kw_only=True):
    pass


class EchoParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Give back `text` in `chunks` pieces, `delay_s` seconds apart, then the whole. The others are misbehaviours."""

    text: str = ""
    chunks: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    first: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Pieces to leave out in front, because the caller has them already."""
    delay_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    burn_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    """CPU seconds to spend per chunk."""
    crash: Crash = ""
    crash_after: Annotated[int, Meta(ge=0)] = 0
    """Chunks of this job (those of earlier attempts that it goes on from too) before `crash`, `garbage`, `hang` or
    `silent`.
    """
    garbage: Garbage = ""
    size: Annotated[int, Meta(ge=0, le=2**30)] = 0
    """Bytes of the `oversized` garbage."""
    hang: bool = False
    """The process stops answering, pings too."""
    silent: bool = False
    """Only this job never ends, nor answers its cancellation."""
    stamp: bool = False
    """Each piece says when it left the runner."""
    model: str | None = None


class EchoChunk(msgspec.Struct, frozen=True, kw_only=True):
    """`mono_ns`: the machine's monotonic clock, if asked for."""

    text: str
    n: int
    mono_ns: int = 0


class EchoResult(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    """Of the pieces sent."""
    pid: int
    """Of the runner, so that a test may kill it; 0 if its node was lost after the last piece."""


class StepsParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Do `steps` steps, `delay_s` seconds each, and give a checkpoint after every so many (0: never). The last four are
    misbehaviours.
    """

    steps: Annotated[int, Meta(ge=1, le=100_000)]
    delay_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    checkpoint_every: Annotated[int, Meta(ge=0)] = 2
    chunks: bool = False
    """A piece of the stream for each step."""
    padding: Annotated[int, Meta(ge=0, le=2**25)] = 0
    """Bytes that each checkpoint is larger."""
    ignore_checkpoint: bool = False
    die_on_checkpoint: bool = False
    garbage_checkpoints: bool = False
    model: str | None = None


class StepsChunk(msgspec.Struct, frozen=True, kw_only=True):
    step: int


class StepsResult(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` is made of all steps in their order; `runs` are the process and the step before its first, of all that
    took part.
    """

    digest: str
    runs: list[tuple[int, int]]


class FilesParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Make a file of each of these sizes, in bytes; equal seeds make equal files. `withhold`: so many of the files that
    it lists it does not give.
    """

    sizes: tuple[Annotated[int, Meta(ge=0, le=2**28)], ...] = ()
    seed: int = 0
    delay_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    source: bytes | None = None
    source_from: str | None = None
    withhold: Annotated[int, Meta(ge=0)] = 0
    model: str | None = None


class FilesResult(msgspec.Struct, frozen=True, kw_only=True):
    """`source_sha256`: of the file it was given. `others`: names of inputs that it was given as parameters."""

    files: tuple[Artifact, ...]
    source_sha256: str
    others: tuple[str, ...]
    pid: int
    seconds: float
    joules: float | None = None


def _missing(settings: Mapping[str, Any]) -> str | None:
    return None if settings.get("enabled") else "switched off; `enabled = true` in section `test` offers it"


def _prior(model: ModelFile | None, machine: Machine) -> Prior:
    return Prior(load_s=0.3 / machine.cpu_share, fixed_s=0.001, rates={"chunks": 0.0001, "seconds": 1.0})


def _models(settings: Mapping[str, Any]) -> list[ModelFile]:
    memory = {kind: settings.get(kind, 0.0) for kind in ("memory_mib", "gpu_memory_mib")}
    return [ModelFile(name=name, **memory) for name in settings.get("models", ())]


def _work(params: EchoParams) -> dict[str, float]:
    chunks = max(0, params.chunks - params.first)
    return {"chunks": float(chunks), "seconds": chunks * (params.delay_s + params.burn_s)}


def _work_of_steps(params: StepsParams) -> dict[str, float]:
    return {"seconds": params.steps * params.delay_s}


def _resume_params(params: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return params | {"first": params.get("first", 0) + len(chunks)}


def _resume_result(result: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return result | {"text": "".join(chunk["text"] for chunk in chunks) + result["text"]}


def _resume_whole(params: dict[str, Any], chunks: Sequence[dict[str, Any]], model: str | None) -> dict[str, Any] | None:
    if params.get("first", 0) + len(chunks) < params.get("chunks", 1):
        return None
    return {"text": "".join(chunk["text"] for chunk in chunks), "pid": 0}


noop = Capability(
    name="test.noop",
    summary="does nothing, as quickly as possible",
    params=NoopParams,
    result=NoopResult,
    settings=TestSettings,
    runner=RUNNER,
    slots=SLOTS,
    missing=_missing,
    models=_models,
    prior=_prior,
)

echo = Capability(
    name="test.echo",
    summary="gives a text back piece by piece, and misbehaves on request",
    params=EchoParams,
    result=EchoResult,
    chunk=EchoChunk,
    settings=TestSettings,
    runner=RUNNER,
    text_field="text",
    slots=SLOTS,
    resume="tokens",
    resume_params=_resume_params,
    resume_result=_resume_result,
    resume_whole=_resume_whole,
    missing=_missing,
    models=_models,
    work=_work,
    prior=_prior,
)


steps = Capability(
    name="test.steps",
    summary="counts steps, goes on from its checkpoints, and misbehaves on request",
    params=StepsParams,
    result=StepsResult,
    chunk=StepsChunk,
    settings=TestSettings,
    runner=RUNNER,
    slots=SLOTS,
    resume="checkpoint",
    missing=_missing,
    models=_models,
    work=_work_of_steps,
    prior=_prior,
)


files = Capability(
    name="test.files",
    summary="makes files of given sizes, and looks at one that it is given",
    params=FilesParams,
    result=FilesResult,
    settings=TestSettings,
    runner=RUNNER,
    slots=SLOTS,
    artifacts="files",
    inputs=("source",),
    missing=_missing,
    models=_models,
    prior=_prior,
)


def capabilities() -> tuple[Capability, ...]:
    """The entry point `test`."""
    return noop, echo, steps, files
