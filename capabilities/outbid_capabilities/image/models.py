"""Finds the image models of a machine: folders and hub ids named in the settings, pulled ones, and the packaged one."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from outbid_capabilities.image import sizing
from outbid_capabilities.image.choice import engine_of, wrong_engine
from outbid_capabilities.image.pipeline import INDEX, MANIFEST, describe, optional_json
from outbid_capabilities.image.weights import PICKLES, WeightsError, read

log = logging.getLogger(__name__)

PACKAGED = Path(__file__).parent / "emoji"

DEPTH = 4
"""Folders below a given one that are looked into: a Hugging Face cache has its models three down."""

Found = dict[str, Any]
"""A ModelFile as a map: this module needs the standard library only."""


def find_models(settings: Mapping[str, Any]) -> tuple[list[Found], dict[str, str]]:
    """The usable models, the default one first, and {path: why not} for the others."""
    usable: list[Found] = []
    broken: dict[str, str] = {}
    for path in dict.fromkeys(_paths(settings, broken)):
        try:
            usable.append(_model(path, settings))
        except OSError as error:
            broken[str(path)] = error.strerror or str(error)
        except WeightsError as error:
            broken[str(path)] = str(error)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            broken[str(path)] = f"a value in its files is not of the kind it should be ({error})"
    for name, reason in broken.items():
        _warn(name, reason)
    if usable:
        usable[0]["default"] = True
    return _named_apart(usable), broken


@lru_cache(maxsize=256)
def _warn(name: str, reason: str) -> None:
    """Once: three capabilities ask for the same models, and ask again whenever something was pulled."""
    log.warning("model %s is left out: %s", name, reason, extra={"action": "model_unusable"})


def find_loras(settings: Mapping[str, Any]) -> dict[str, str]:
    """Files of LoRAs by name, broken ones left out."""
    found: dict[str, str] = {}
    for name, path in _loras(settings):
        try:
            read(path)
        except (WeightsError, OSError) as error:
            log.warning("LoRA %s is left out: %s", path, error, extra={"action": "model_unusable"})
        else:
            found.setdefault(name, str(path.absolute()))
    return found


def _loras(settings: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Those of the folders named, and single files that were pulled, which have a name of their own."""
    for text in settings.get("loras") or ():
        yield from ((path.stem, path) for path in _lora_files(Path(text).expanduser()))
    for folder in map(Path, settings.get("pulled") or ()):
        files = [] if (folder / INDEX).exists() else sorted(folder.glob("*.safetensors"))
        if len(files) == 1 and (folder / MANIFEST).is_file():
            yield _given_name(folder) or files[0].stem, files[0]


def _given_name(folder: Path) -> str:
    """What `outbid pull` was told to call it."""
    try:
        return str(optional_json(folder / MANIFEST).get("name") or "")
    except (WeightsError, OSError):
        return ""


def _lora_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []


# -- where to look -----------------------------------------------------------------------------------------------------


def _paths(settings: Mapping[str, Any], broken: dict[str, str]) -> Iterator[Path]:
    for text in settings.get("models") or ():
        path = _located(text)
        folders = list(_pipelines(path)) if path is not None else []
        if not folders:
            broken[text] = _nothing_there(text, path)
        yield from folders
    for text in settings.get("pulled") or ():  # the oldest first: a default stays what it was
        yield from _pipelines(Path(text).expanduser())
    if (PACKAGED / INDEX).is_file():
        yield PACKAGED


def _located(text: str) -> Path | None:
    """A path as it is, or that of a hub id in the Hugging Face cache."""
    path = Path(text).expanduser()
    if path.exists() or text.count("/") != 1 or text.startswith(("/", ".", "~")):
        return path if path.exists() else None
    cached = hub_cache() / f"models--{text.replace('/', '--')}"
    return cached if cached.is_dir() else None


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetched, by its own environment variables."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _nothing_there(text: str, path: Path | None) -> str:
    if path is None:
        hint = (
            f"; `outbid pull hf:{text}` brings it" if text.count("/") == 1 and not text.startswith(("/", ".")) else ""
        )
        return f"there is no such folder{hint}"
    if path.is_file():
        pickle = ", and it is a pickle, which is never loaded" if path.suffix in PICKLES else ""
        return f"it is a single file{pickle}; name the folder of a diffusers pipeline (with a {INDEX})"
    return f"there is no diffusers pipeline in it (no {INDEX})"


def _pipelines(path: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder itself if it is a pipeline, else those below it; of a cached repository the newest snapshot."""
    if (path / INDEX).is_file():
        yield path
    elif (path / "snapshots").is_dir():
        yield from _snapshot(path)
    elif depth > 0 and path.is_dir():
        for below in sorted(path.iterdir()):
            if below.is_dir() and not below.name.startswith("."):
                yield from _pipelines(below, depth - 1)


def _snapshot(repository: Path) -> Iterator[Path]:
    """The snapshot that `main` names, or the newest."""
    main = repository / "refs" / "main"
    chosen = repository / "snapshots" / main.read_text().strip() if main.is_file() else None
    if chosen is not None and (chosen / INDEX).is_file():
        yield chosen
        return
    whole = [folder for folder in (repository / "snapshots").iterdir() if (folder / INDEX).is_file()]
    yield from sorted(whole, key=lambda folder: folder.stat().st_mtime)[-1:]


# -- what is there -----------------------------------------------------------------------------------------------------


def _model(path: Path, settings: Mapping[str, Any]) -> Found:
    """A ModelFile as a map. Raises WeightsError where it cannot be used here."""
    found = describe(path)
    engine = engine_of(settings, found["info"]["engines"])
    if engine is None:
        raise WeightsError(wrong_engine(settings))
    memory_mib, gpu_memory_mib = sizing.memory(found, settings, engine)
    found["info"] |= {"engine": engine, "device": sizing.device_of(settings, engine)}
    return found | {
        "path": str(path.absolute()),
        "memory_mib": memory_mib,
        "gpu_memory_mib": gpu_memory_mib,
        "default": False,
    }


def _named_apart(models: list[Found]) -> list[Found]:
    """Of two equal names the second gets a number."""
    seen: Counter[str] = Counter()
    for model in models:
        seen[model["name"]] += 1
        if seen[model["name"]] > 1:
            model["name"] += f"-{seen[model['name']]}"
    return models
