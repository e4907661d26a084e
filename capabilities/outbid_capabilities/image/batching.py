"""Calls of one model put together along the batch dimension, and the answer taken apart again.

Nothing is known about the model. An argument is *rowed* if it has a row for each sample of the call (its first
dimension says so), else *shared*: then it must be equal in all calls of a batch (Flux's position ids, switches).
Timesteps that are one number for the whole call get a row per sample, so that jobs at different steps fit together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

TIMES = frozenset({"timestep", "timesteps"})

POSITIONS = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "rotary_emb"})
"""Two-dimensional tensors of these names have a row per token, and are shared even if tokens are as many as samples."""


class Unbatchable(Exception):
    """Arguments or answers of a shape that cannot be put together or taken apart: the calls run one by one."""


@dataclass(slots=True, eq=False)
class Shape:
    """What calls must have in common to run as one. `key` None: such a call always runs alone."""

    rows: int
    key: Hashable
    shared: list[torch.Tensor] = field(default_factory=list)

    def fits(self, other: Shape) -> bool:
        if self.key is None or self.key != other.key:
            return False
        return all(a is b or torch.equal(a, b) for a, b in zip(self.shared, other.shared, strict=True))


def shape_of(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shape:
    """`names` are those of the positional parameters. The rows are counted by the first tensor: the noisy sample."""
    named = [*zip(names, args, strict=False), *kwargs.items()]
    first = next((value for _, value in named), None)
    if len(args) > len(names) or not isinstance(first, torch.Tensor) or first.ndim < 2:
        return Shape(1, None)
    shape, key = Shape(first.shape[0], None), []
    try:
        for name, value in named:
            key.append((name, _describe(name, value, shape)))
        shape.key = tuple(key)
        hash(shape.key)
    except TypeError:  # an argument that cannot be compared
        shape.key = None
    return shape


def _describe(name: str, value: Any, shape: Shape) -> Hashable:
    if isinstance(value, torch.Tensor):
        if _is_time(name, value, shape.rows):
            return "time", _precision(value.dtype), value.device
        if _rowed(name, value, shape.rows):
            return "rows", value.shape[1:], value.dtype, value.device
        shape.shared.append(value)
        return "shared", value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return "dict", tuple((key, _describe(key, inner, shape)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        if _one_each(value, shape.rows):
            return ("each",)
        return type(value), tuple(_describe(name, inner, shape) for inner in value)
    if name in TIMES and isinstance(value, int | float):
        return "time", type(value)
    return type(value), value


def _precision(dtype: torch.dtype) -> torch.dtype:
    """Some schedulers count time in whole numbers and some in float32: one and the same to a model. Half precision is
    not: it would round another job's.
    """
    return dtype if dtype.is_floating_point and dtype.itemsize < 4 else torch.float32


def _is_time(name: str, value: torch.Tensor, rows: int) -> bool:
    return name in TIMES and (value.ndim == 0 or (value.ndim == 1 and value.shape[0] in (1, rows)))


def _rowed(name: str, value: torch.Tensor, rows: int) -> bool:
    return value.ndim > 0 and value.shape[0] == rows and not (name in POSITIONS and value.ndim == 2)


def _one_each(value: list[Any] | tuple[Any, ...], rows: int) -> bool:
    """A plain list with an entry per sample, like the picture sizes that Qwen-Image's transformer takes."""
    return isinstance(value, list) and len(value) == rows and not any(isinstance(part, torch.Tensor) for part in value)


def merge(name: str, values: Sequence[Any], rows: Sequence[int]) -> Any:
    """One argument of several calls as one. They have the same `Shape`."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        if _is_time(name, first, rows[0]):
            return torch.cat([value.reshape(-1).expand(n) for value, n in zip(values, rows, strict=True)])
        return torch.cat(list(values)) if _rowed(name, first, rows[0]) else first
    if isinstance(first, dict):
        return {key: merge(key, [value[key] for value in values], rows) for key in first}
    if isinstance(first, list | tuple):
        if _one_each(first, rows[0]):
            return [part for value in values for part in value]
        return type(first)(merge(name, list(parts), rows) for parts in zip(*values, strict=True))
    if name in TIMES and isinstance(first, int | float):
        return torch.tensor([value for value, n in zip(values, rows, strict=True) for _ in range(n)])
    return first


def narrow(name: str, value: Any, rows: int, begin: int, end: int) -> Any:
    """The rows from `begin` to `end` of an argument with so many."""
    if isinstance(value, torch.Tensor):
        if _is_time(name, value, rows):
            return value.reshape(-1).expand(rows)[begin:end]
        return value[begin:end] if _rowed(name, value, rows) else value
    if isinstance(value, dict):
        return {key: narrow(key, inner, rows, begin, end) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if _one_each(value, rows):
            return value[begin:end]
        return type(value)(narrow(name, inner, rows, begin, end) for inner in value)
    return value


def split(answer: Any, sizes: Sequence[int]) -> list[Any]:
    """A model's answer as one for each call. Raises Unbatchable."""
    if isinstance(answer, torch.Tensor):
        if answer.ndim == 0 or answer.shape[0] != sum(sizes):
            raise Unbatchable(f"an answer of shape {tuple(answer.shape)} to {sum(sizes)} samples")
        return list(answer.split(list(sizes)))
    if isinstance(answer, dict):  # diffusers' outputs are ordered dictionaries
        parts = {key: split(value, sizes) for key, value in answer.items()}
        return [type(answer)(**{key: part[n] for key, part in parts.items()}) for n in range(len(sizes))]
    if isinstance(answer, tuple):
        return list(zip(*(split(value, sizes) for value in answer), strict=True))
    if answer is None:
        return [None] * len(sizes)
    raise Unbatchable(f"an answer of type {type(answer).__name__}")


def join(answers: Sequence[Any]) -> Any:
    """The answers to parts of a call, as one."""
    first = answers[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(answers))
    if isinstance(first, dict):
        return type(first)(**{key: join([answer[key] for answer in answers]) for key in first})
    if isinstance(first, tuple):
        return tuple(join(list(parts)) for parts in zip(*answers, strict=True))
    if isinstance(first, list):  # one entry per sample
        return [part for answer in answers for part in answer]
    return first
