"""Which engine does the work: the one the settings name, or the preferred one of those installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

ENGINES = {"llama-cpp-python": "llama_cpp", "xllamacpp": "xllamacpp"}
"""The package that brings an engine, and its module; in the order `auto` prefers them (docs/decisions/0002)."""

_MISSING = {
    "auto": "no LLM engine is installed; `pip install 'outbid[llm-prebuilt]'` brings one ready-made,"
    " `pip install 'outbid[llm]'` compiles one for this machine",
    "llama-cpp-python": "the engine llama-cpp-python is not installed; `pip install 'outbid[llm]'` compiles it",
    "xllamacpp": "the engine xllamacpp is not installed; `pip install 'outbid[llm-prebuilt]'` brings it ready-made",
}


def installed(module: str) -> bool:
    """Looks for it without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def engine_of(settings: Mapping[str, Any]) -> str | None:
    """The engine these settings mean, None if it is not installed."""
    wanted = settings.get("engine", "auto")
    return next((name for name in ENGINES if wanted in ("auto", name) and installed(ENGINES[name])), None)


def missing_engine(settings: Mapping[str, Any]) -> str:
    """What to install, as a sentence."""
    return _MISSING[settings.get("engine", "auto")]
