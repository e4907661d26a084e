"""The declaration of a capability: all a daemon must know about a kind of work without importing what does it.

Declarations are found through the entry-point group `outbid.capability`; each entry is a `Capability` or a function
that returns
several. A declaration module may import the standard library, msgspec and this package, nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

ENTRY_POINT_GROUP = "outbid.capability"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model this node can load. `memory_mib` is what loading it will take; `info` goes to the runner and to `outbid
    models`.
    """

    name: str
    path: str | None = None
    size_mib: float = 0.0
    memory_mib: float = 0.0
    gpu_memory_mib: float = 0.0
    """Of `memory_mib`'s kind, on the graphics card; what has one may take little of the machine's own."""
    default: bool = False
    info: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a prior estimate may rest on. `memory_bandwidth_gib_s` is measured at each start (one core, copying);
    `gpu_bandwidth_gib_s` is what is known of the graphics card with the most memory, 0 without one.

    `cpu_share` (0 to 1] is how much of its time a runner may use here.
    """

    cpu_count: int = 1
    memory_bandwidth_gib_s: float = 5.0
    gpu_bandwidth_gib_s: float = 0.0
    cpu_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """A first guess before anything ran here: seconds to load, fixed seconds per job, seconds per unit of work.

    `crowding`: by what share each further job on the same runner slows the others (0: not at all, 1: as if in turn).
    """

    load_s: float = 0.0
    fixed_s: float = 0.001
    crowding: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a job has its runner read, piece by piece in order. A runner that keeps what it has read (a language model
    its KV cache) begins where this parts from what it holds, so the node that has read most of it is through sooner.

    `pieces`: each with how much of the work's `unit` it is. `anew`: all is read again, whatever the runner holds.
    """

    unit: str
    pieces: Sequence[tuple[str, float]]
    anew: bool = False


def _no_models(settings: Mapping[str, Any]) -> Sequence[ModelFile]:
    return ()


def _not_missing(settings: Mapping[str, Any]) -> str | None:
    return None


def _no_work(params: Any) -> dict[str, float]:
    return {}


def _free_prior(model: ModelFile | None, machine: Machine) -> Prior:
    return Prior()


def _start_again(params: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return None


def _same_result(result: dict[str, Any], chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return result


def _never_whole(params: dict[str, Any], chunks: Sequence[dict[str, Any]], model: str | None) -> dict[str, Any] | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A kind of work.

    name      two or three words with dots, e.g. `llm.chat`; its subject is `mesh.<name>`
    params    Struct of the request; its `__post_init__` may raise ValueError with a sentence for the caller
    result    Struct of the result; what a runner returns is checked against it
    chunk     Struct of one streamed piece, or None if the work does not stream
    runner    `module:Class`, imported in the child process only; capabilities that name the same runner and model
              share a process
    python    interpreter for the runner, None for this one (a capability may live in its own virtual environment);
              settings of that name win
    text_field   the parameter a bare-text request fills
    work      params -> units of work, cheap (no tokenizer)
    at_most   units of work whose asked amount is only an upper bound (the tokens of an answer)
    reads     (params, None) -> what such a job has its runner read; (params, result) -> the same and what the runner
              wrote, as a later job would repeat it; None where runners keep nothing. Cheap: asked for every job
    trials    requests of about a second each by which a node measures its speed; none: only its warm-up tells
    missing   settings -> why it cannot run here and what would help, or None; must not import what it looks for
    models    settings -> the models found on this machine; empty with `needs_model=False` means it needs none
    prior     (model, machine) -> first guess of its speed
    slots     how many jobs one runner takes before it said how many (a cold runner's bid); settings of that name win
    artifacts field of the result that lists the files made; the runner gives their `name` and `type` there and their
              content as payload frames in that order, the node makes `Artifact`s of them
    inputs    parameters that hold bytes (or, with `_from` after the name, an artifact's id): the runner gets them as
              named files instead
    resume    what a re-award may reuse: nothing, the tokens delivered (by the three functions below), or the last
              checkpoint that the runner gave
    resume_params   (params, pieces delivered) -> params that ask for the rest, None if it must start again
    resume_result   (result of the rest, pieces before it) -> the whole result
    resume_whole    (params, pieces delivered, the model that wrote them) -> the result where nothing is left to be
              done, else None; asked before `resume_params`
    settings  Struct of this capability's section in the configuration
    """

    name: str
    summary: str
    params: type[msgspec.Struct]
    result: type[msgspec.Struct]
    runner: str
    chunk: type[msgspec.Struct] | None = None
    settings: type[msgspec.Struct] | None = None
    python: str | None = None
    text_field: str | None = None
    needs_model: bool = False
    slots: int = 1
    artifacts: str | None = None
    inputs: tuple[str, ...] = ()
    resume: Literal["restart", "tokens", "checkpoint"] = "restart"
    work: Callable[[Any], dict[str, float]] = _no_work
    at_most: tuple[str, ...] = ()
    reads: Callable[[Any, Mapping[str, Any] | None], Reading] | None = None
    trials: tuple[Mapping[str, Any], ...] = ()
    missing: Callable[[Mapping[str, Any]], str | None] = _not_missing
    models: Callable[[Mapping[str, Any]], Sequence[ModelFile]] = _no_models
    prior: Callable[[ModelFile | None, Machine], Prior] = _free_prior
    resume_params: Callable[[dict[str, Any], Sequence[dict[str, Any]]], dict[str, Any] | None] = _start_again
    resume_result: Callable[[dict[str, Any], Sequence[dict[str, Any]]], dict[str, Any]] = _same_result
    resume_whole: Callable[[dict[str, Any], Sequence[dict[str, Any]], str | None], dict[str, Any] | None] = _never_whole

    @property
    def section(self) -> str:
        """Name of its section in the configuration: `llm` for `llm.chat`."""
        return self.name.partition(".")[0]

    def model_of(self, params: Any) -> str | None:
        """The model a request names, None for the node's default."""
        return getattr(params, "model", None)
