"""Films with models that draw single pictures: each frame a picture between two noises and two prompts.

Works for any pipeline: its own `encode_prompt` and `prepare_latents` are called twice, and what they give is mixed.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch


def noise_weights(frame: int, frames: int, loop: bool) -> tuple[float, float]:
    """How much of the first and of the second noise a frame has.

    Spherical interpolation: two noises of many dimensions are at right angles, and sine and cosine keep the length that
    the model expects (White 2016, arXiv:1609.04468). A loop goes once around the circle through both.
    """
    angle = 2 * math.pi * frame / frames if loop else math.pi / 2 * frame / max(1, frames - 1)
    return math.cos(angle), math.sin(angle)


def prompt_weight(frame: int, frames: int, loop: bool) -> float:
    """How much of the second prompt a frame has: in a loop there and back again."""
    return (1 - math.cos(2 * math.pi * frame / frames)) / 2 if loop else frame / max(1, frames - 1)


def mix_noise(pipe: Any, other: torch.Generator, weights: tuple[float, float]) -> None:
    """Let the pipeline start from a mixture of its own noise and that of another generator."""
    prepare = pipe.prepare_latents
    signature = inspect.signature(prepare)

    @functools.wraps(prepare)
    def mixed(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        first = prepare(*bound.args, **bound.kwargs)
        bound.arguments["generator"] = other
        return _mixed(first, prepare(*bound.args, **bound.kwargs), weights)

    vars(pipe)["prepare_latents"] = mixed


def _mixed(first: Any, second: Any, weights: tuple[float, float]) -> Any:
    """The latents come alone, or first of several things."""
    if isinstance(first, torch.Tensor):
        return first * weights[0] + second * weights[1]
    return type(first)([_mixed(first[0], second[0], weights), *first[1:]])


def mix_prompts(pipe: Any, prompt_to: str, weight: float) -> None:
    """Let the pipeline draw something between its prompt and another."""
    encode: Callable[..., Any] = pipe.encode_prompt
    signature = inspect.signature(encode)

    @functools.wraps(encode)
    def mixed(*args: Any, **kwargs: Any) -> Any:
        first = encode(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        for name in bound.arguments:
            if name.startswith("prompt") and isinstance(bound.arguments[name], str | list):
                bound.arguments[name] = _as(bound.arguments[name], prompt_to)
        return _between(first, encode(*bound.args, **bound.kwargs), weight)

    vars(pipe)["encode_prompt"] = mixed


def _as(old: str | list[str], text: str) -> str | list[str]:
    return text if isinstance(old, str) else [text] * len(old)


def _between(first: Any, second: Any, weight: float) -> Any:
    """Embeddings are mixed; of masks of what counts in them, all that counts in either."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and first.shape == second.shape:
        return torch.lerp(first, second, weight) if first.is_floating_point() else torch.maximum(first, second)
    if isinstance(first, list | tuple):
        return type(first)(_between(a, b, weight) for a, b in zip(first, second, strict=True))
    return first


def remember(pipe: Any, memory: dict[Any, Any]) -> None:
    """Let pictures of one job share what the text encoder said: `memory` holds it by what was asked."""
    encode: Callable[..., Any] = pipe.encode_prompt

    @functools.wraps(encode)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if key not in memory:
            memory[key] = encode(*args, **kwargs)
        return memory[key]

    vars(pipe)["encode_prompt"] = remembered
