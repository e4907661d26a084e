"""Low-rank adaptations: loaded once into the shared models, switched on for the jobs that want them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from outbid_capabilities.runner_kit import RunError

Scope = tuple[tuple[str, float], ...]
"""The LoRAs of a job by name, with their weights. Jobs with different ones do not share a batch."""


class Loras:
    """`files`: paths by name. One set of them is in force at a time, for all of the model."""

    def __init__(self, pipe: Any, files: Mapping[str, str]) -> None:
        self._pipe, self._files = pipe, files
        self._loaded: dict[str, str] = {}
        self._active: Scope = ()

    def load(self, wanted: Scope) -> None:
        """Raises RunError for one that is not here, or does not fit this model."""
        for name, _ in wanted:
            if name not in self._loaded:
                self._load(name)

    def activate(self, wanted: Scope) -> None:
        if wanted == self._active:
            return
        if wanted:
            self._pipe.enable_lora()
            self._pipe.set_adapters([self._loaded[name] for name, _ in wanted], [weight for _, weight in wanted])
        else:
            self._pipe.disable_lora()
        self._active = wanted

    def _load(self, name: str) -> None:
        path = self._files.get(name)
        if path is None:
            raise RunError(f"there is no LoRA {name!r} on this node", code="unknown_model", retry=True)
        if importlib.util.find_spec("peft") is None:
            message = "LoRAs need the Python package peft; `python -m pip install peft` where the node runs"
            raise RunError(message, code="runner_unavailable", retry=True)
        if not hasattr(self._pipe, "load_lora_weights"):
            raise RunError("this model takes no LoRAs", code="invalid_request", retry=False)
        adapter = f"outbid_{len(self._loaded)}"
        try:
            self._pipe.load_lora_weights(_read(path), adapter_name=adapter)
            if adapter not in {one for found in self._pipe.get_list_adapters().values() for one in found}:
                raise ValueError("none of its parts is in this model")
        except Exception as error:  # files from anywhere, made for any model
            text = " ".join(str(error).split())
            message = f"LoRA {name!r} does not fit this model: {text:.200}"
            raise RunError(message, code="invalid_request", retry=False) from error
        finally:
            self._active = ((name, 0.0),)  # loading switches it on: whatever is next in force must be set
        self._loaded[name] = adapter


def _read(path: str) -> dict[str, Any]:
    """Only safetensors: diffusers would take pickles too."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(path)
    return found
