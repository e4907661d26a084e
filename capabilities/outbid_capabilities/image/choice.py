"""Which engine draws: the one the settings name, or the preferred one of those installed that the model can run on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbid_capabilities.image.engine import Engine, EngineOptions, Progress

ENGINES: dict[str, tuple[str, ...]] = {
    "diffusers": ("torch", "diffusers", "transformers", "safetensors", "greenlet", "PIL"),
    "onnx": ("onnxruntime", "tokenizers", "safetensors", "numpy", "PIL"),
}
"""The modules an engine needs; in the order `auto` prefers them: torch is quicker and takes any pipeline."""

_HOW = {
    "auto": "no image engine is installed; `pip install 'outbid[image]'` brings diffusers on torch (any model),"
    " `pip install 'outbid[image-lite]'` the small built-in model on ONNX Runtime (some 150 MB resident)",
    "diffusers": "the engine diffusers is not whole here; `pip install 'outbid[image]'` brings it",
    "onnx": "the engine onnx is not whole here; `pip install 'outbid[image-lite]'` brings it",
}


def installed(name: str) -> bool:
    return not lacking(name)


def lacking(name: str) -> list[str]:
    """The modules this engine needs and does not find; looks without importing."""
    return [module for module in ENGINES[name] if not _found(module)]


def engines_of(settings: Mapping[str, Any]) -> list[str]:
    """The engines these settings allow and this machine has, the preferred one first."""
    wanted = settings.get("engine", "auto")
    return [name for name in ENGINES if wanted in ("auto", name) and installed(name)]


def engine_of(settings: Mapping[str, Any], runs_on: Iterable[str]) -> str | None:
    """The engine for a model that runs on these; None if none of them is here."""
    able = set(runs_on)
    return next((name for name in engines_of(settings) if name in able), None)


def missing_engine(settings: Mapping[str, Any]) -> str:
    """What to install, as a sentence."""
    wanted = settings.get("engine", "auto")
    modules = lacking(wanted) if wanted in ENGINES else []
    return _HOW[wanted] + (f" (missing: {', '.join(modules)})" if modules else "")


def wrong_engine(settings: Mapping[str, Any]) -> str:
    """Why a model that only diffusers can run is of no use here."""
    if settings.get("engine") == "onnx":
        return 'it needs the engine diffusers, and the section\'s `engine` is "onnx"'
    return (
        "it needs diffusers and torch (`pip install 'outbid[image]'`); ONNX Runtime alone runs only the built-in model"
    )


def create(name: str, options: EngineOptions, progress: Progress) -> Engine:
    """Import the engine and load the model with it."""
    if name == "onnx":
        from outbid_capabilities.image.onnx_engine import OnnxEngine

        return OnnxEngine(options, progress)
    from outbid_capabilities.image.diffusers_engine import DiffusersEngine

    return DiffusersEngine(options, progress)


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
