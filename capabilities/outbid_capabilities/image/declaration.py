"""What a daemon knows about `image.*`: settings, the models on this machine, and a first guess of their speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_capabilities.image.choice import engines_of, missing_engine
from outbid_capabilities.image.models import find_models
from outbid_capabilities.image.sizing import prior_rates
from outbid_contracts.capability import Capability, Machine, ModelFile, Prior
from outbid_contracts.images import (
    ANIMATE,
    EDIT,
    GENERATE,
    AnimateParams,
    EditParams,
    ImageParams,
    ImageResult,
    Preview,
)

SLOTS = 4

CROWDING = 0.7
"""Four jobs in one batch take about three times as long as one: (3.1 - 1) / 3."""

STRENGTH = 0.8
"""What edits that leave it open are thought to ask for; most pipelines' default."""

TRIALS: tuple[Mapping[str, Any], ...] = ({"prompt": "red apple", "steps": 2, "seed": 0},)

LOAD_S = {"diffusers": 6.0, "onnx": 0.5}
"""Importing the engine and its first step (torch and diffusers take 3-4 s on two cores)."""


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `image`."""

    engine: Annotated[
        Literal["auto", "diffusers", "onnx"],
        Meta(
            description="what draws: diffusers runs any model, onnx only the built-in one; auto: diffusers if installed"
        ),
    ] = "auto"
    models: Annotated[
        tuple[str, ...],
        Meta(
            description="folders of diffusers pipelines (with a `model_index.json`), folders to look for them in, or"
            " hub ids (org/name) of what is in this machine's Hugging Face cache; the first is the default model"
        ),
    ] = ()
    loras: Annotated[
        tuple[str, ...],
        Meta(description="folders with LoRAs (*.safetensors); a request names them by file name, without the ending"),
    ] = ()
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Meta(description="auto: the graphics card, if any")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        Meta(description="numbers to compute with; auto: half precision on a graphics card, float32 on a processor"),
    ] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="of the processor; none: about one for each physical core")
    ] = None
    slots: Annotated[
        int, Meta(ge=1, le=64, description="jobs at once per model; those of one shape are drawn as one batch")
    ] = SLOTS
    memory_mib: Annotated[
        Annotated[float, Meta(ge=64)] | None, Meta(description="MiB for a model and its work; none: what is free")
    ] = None


def _missing(kind: str) -> Callable[[Mapping[str, Any]], str | None]:
    def missing(settings: Mapping[str, Any]) -> str | None:
        if not engines_of(settings):
            return missing_engine(settings)
        usable, broken = find_models(settings)
        if any(kind in model["info"]["kinds"] for model in usable):
            return None
        if usable:
            return f"none of its models can do this: {', '.join(model['name'] for model in usable)}"
        reasons = "; ".join(f"{path}: {reason}" for path, reason in broken.items())
        return f"no usable model{': ' + reasons if reasons else ''}"

    return missing


def _models(kind: str) -> Callable[[Mapping[str, Any]], list[ModelFile]]:
    def models(settings: Mapping[str, Any]) -> list[ModelFile]:
        found = [model for model in find_models(settings)[0] if kind in model["info"]["kinds"]]
        return [msgspec.convert(model, ModelFile) for model in found]

    return models


def _count(params: ImageParams | EditParams | AnimateParams) -> float:
    """Pictures to draw, an edit counting for the part of the steps that it takes."""
    if isinstance(params, AnimateParams):
        return float(params.frames)
    return params.n * ((params.strength or STRENGTH) if isinstance(params, EditParams) else 1.0)


def _work(params: ImageParams | EditParams | AnimateParams) -> dict[str, float]:
    """One unit of `engine.units`, by what the request leaves to the model.

    Guidance is left out on purpose: at 1 and below a model with classifier-free guidance takes half the time, but those
    who ask for it mostly mean distilled models, where it changes nothing.
    """
    count, steps = _count(params), params.steps
    mpix = params.width * params.height / 1e6 if params.width and params.height else None
    if steps and mpix:
        return {"mpix_steps": count * mpix * steps}
    if steps:
        return {"steps": count * steps}
    return {"images": count} if mpix is None else {"mpix": count * mpix}


def _prior(model: ModelFile | None, machine: Machine) -> Prior:
    info = model.info if model else {}
    load_s = LOAD_S.get(info.get("engine", ""), 1.0)
    read_s = (model.size_mib if model else 0.0) / 1024 / machine.memory_bandwidth_gib_s * 4
    return Prior(
        load_s=(load_s + read_s) / machine.cpu_share,
        fixed_s=0.02 / machine.cpu_share,
        crowding=CROWDING,
        rates=prior_rates(info, machine.cpu_count * machine.cpu_share),
    )


def _capability(
    name: str,
    summary: str,
    params: type[msgspec.Struct],
    inputs: tuple[str, ...] = (),
    trials: tuple[Mapping[str, Any], ...] = (),
) -> Capability:
    kind = name.partition(".")[2]
    return Capability(
        name=name,
        summary=summary,
        params=params,
        result=ImageResult,
        chunk=Preview,
        settings=ImageSettings,
        runner="outbid_capabilities.image.runner:ImageRunner",
        text_field="prompt",
        needs_model=True,
        slots=SLOTS,
        artifacts="images",
        inputs=inputs,
        trials=trials,
        resume="checkpoint",
        work=_work,
        missing=_missing(kind),
        models=_models(kind),
        prior=_prior,
    )


def capabilities() -> tuple[Capability, ...]:
    return (
        _capability(GENERATE, "draws pictures from words", ImageParams, trials=TRIALS),
        _capability(
            EDIT, "changes a picture as words say, all of it or where a mask is white", EditParams, ("image", "mask")
        ),
        _capability(ANIMATE, "makes short films from words: GIF, WebP or MP4", AnimateParams),
    )
