"""What is to be drawn: from the words of the form to parameters, and from a picture back to the words. No Textual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from outbid.cli.imaging import size
from outbid_contracts.errors import InvalidRequest

NUMBERS: Mapping[str, tuple[str, type[int] | type[float]]] = {
    "steps": ("Steps", int),
    "guidance": ("Guidance", float),
    "seed": ("Seed", int),
    "n": ("Pictures", int),
}
"""Fields of the form: the parameter, its label, and what it is."""

WORDS = ("negative_prompt", "size", *NUMBERS)


def parameters(words: Mapping[str, str]) -> dict[str, Any]:
    """Of what was filled in. Raises InvalidRequest.

    >>> parameters({"size": "64x64", "seed": "7", "n": "", "negative_prompt": " "})
    {'width': 64, 'height': 64, 'seed': 7}
    """
    params: dict[str, Any] = {}
    if negative := words.get("negative_prompt", "").strip():
        params["negative_prompt"] = negative
    if text := words.get("size", "").strip():
        params |= _size(text)
    for name, (label, kind) in NUMBERS.items():
        if text := words.get(name, "").strip():
            params[name] = number(label, text, kind)
    return params


def number(label: str, text: str, kind: type[int] | type[float]) -> int | float:
    """Raises InvalidRequest."""
    try:
        return kind(text)
    except ValueError as error:
        raise InvalidRequest(f"{label}: {text!r} is not a {'whole ' if kind is int else ''}number") from error


def _size(text: str) -> dict[str, int]:
    try:
        return size(text)
    except click.BadParameter as error:
        raise InvalidRequest(f"Size: {error.message}") from error


def words_of(told: Mapping[str, Any]) -> dict[str, str]:
    """The form's words of what is written into a picture (`prompt` and `model` too); nothing where nothing is."""
    found = {
        name: str(told[name])
        for name in ("prompt", "model", "negative_prompt", "steps", "guidance", "seed")
        if name in told
    }
    if "width" in told and "height" in told:
        found["size"] = f"{told['width']}x{told['height']}"
    return found


def facts(told: Mapping[str, Any]) -> str:
    """Of a picture from the gallery, as `emoji · 64x64 · 8 steps · seed 42 · red apple`."""
    words = words_of(told)
    parts = [words.get("model", ""), words.get("size", "")]
    parts += [f"{words['steps']} steps"] if "steps" in words else []
    parts += [f"seed {words['seed']}"] if "seed" in words else []
    return " · ".join(filter(None, [*parts, words.get("prompt", "")]))
