"""Which files of a repository or folder a model needs: one GGUF, or a diffusers pipeline in one variant; no pickles.

Weights of a component are called `diffusion_pytorch_model` or `model`, then the variant, then the number of the part
(diffusers' and transformers' `_add_variant`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from outbid_contracts.errors import InvalidRequest
from outbid_contracts.files import ModelKind
from outbid_node.files.plan import Listed, Listing
from outbid_node.files.source import PICKLES, SINGLE_FILES, refuse_pickle

INDEX = "model_index.json"
OWN_INDEX = "outbid.json"
SETTINGS = (".json", ".txt", ".model", ".jinja")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[A-Za-z0-9_]+))?(?P<part>-\d{5}-of-\d{5})?\.safetensors"
)
_WEIGHTS_INDEX = re.compile(r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
_GGUF_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_PREFERRED = ("fp16", "")


def choose(listing: Listing, file: str = "", variant: str = "") -> tuple[ModelKind, list[Listed]]:
    """Raises InvalidRequest, saying what there is instead."""
    if file:
        return _one(listing, file)
    if INDEX in listing.texts:
        return "diffusers", _pipeline(listing, variant)
    ggufs = [it for it in listing.files if it.path.lower().endswith(".gguf")]
    firsts = [it for it in ggufs if (part := _GGUF_PART.search(it.path)) is None or int(part[1]) == 1]
    if len(firsts) == 1:
        return "gguf", _with_parts(ggufs, firsts[0])
    if firsts:
        raise InvalidRequest(_which(listing, ggufs, firsts), files=[it.path for it in firsts])
    raise InvalidRequest(_nothing(listing))


def _one(listing: Listing, file: str) -> tuple[ModelKind, list[Listed]]:
    found = next((it for it in listing.files if it.path == file), None)
    if found is None:
        near = [it for it in listing.files if file.lower() in it.path.lower() and it.path.lower().endswith(".gguf")]
        have = ", ".join(it.path for it in near[:20]) or f"{len(listing.files)} others"
        raise InvalidRequest(f"{listing.source} has no file {file}; it has {have}")
    refuse_pickle(file)
    if file.lower().endswith(".gguf"):
        return "gguf", _with_parts(listing.files, found)
    if file.lower().endswith(SINGLE_FILES):
        return "file", [found]
    raise InvalidRequest(f"{file} is not a model: a single file must be .gguf or .safetensors")


def _with_parts(files: Iterable[Listed], chosen: Listed) -> list[Listed]:
    """The file, or all parts of the model it is a part of."""
    part = _GGUF_PART.search(chosen.path)
    if part is None:
        return [chosen]
    base, known = chosen.path[: part.start()], {it.path: it for it in files}
    wanted = [f"{base}-{n:05d}-of-{part[2]}.gguf" for n in range(1, int(part[2]) + 1)]
    if lost := [path for path in wanted if path not in known]:
        raise InvalidRequest(f"parts of {chosen.path} are missing: {', '.join(lost[:5])}")
    return [known[path] for path in wanted]


def _which(listing: Listing, ggufs: Sequence[Listed], firsts: Sequence[Listed]) -> str:
    lines = []
    for first in sorted(firsts, key=lambda it: it.path):
        size = sum(it.size or 0 for it in _with_parts(ggufs, first))
        lines.append(f"  {listing.source}:{first.path}  ({size / 2**30:.1f} GiB)")
    return f"{listing.source} has several models; name one:\n" + "\n".join(lines)


def _nothing(listing: Listing) -> str:
    if any(it.path.lower().endswith(PICKLES) for it in listing.files):
        return (
            f"{listing.source} has pickle checkpoints only (.bin, .ckpt, .pt): loading one runs whatever code is in "
            "it. Look for the same model as .safetensors or .gguf"
        )
    if any(it.path.lower().endswith(".safetensors") for it in listing.files):
        return (
            f"{listing.source} is neither a diffusers pipeline (no {INDEX}) nor has it a .gguf; for a language model "
            "look for its GGUF version, for a LoRA name the file: hf:org/name:file.safetensors"
        )
    return f"{listing.source} is not a model: it has no .gguf, no {INDEX}, no .safetensors"


# -- diffusers -------------------------------------------------------------------------------------------------------


def _pipeline(listing: Listing, variant: str) -> list[Listed]:
    names = _components(listing.texts[INDEX], listing.source)
    parts = {name: [it for it in listing.files if PurePosixPath(it.path).parent.as_posix() == name] for name in names}
    chosen = _variant(listing, parts, variant)
    kept = [it for it in listing.files if it.path in (INDEX, OWN_INDEX)]
    for name, files in parts.items():
        kept += [it for it in files if _is_settings(it)]
        kept += _weights(listing, name, files, chosen)
    if any(it.path == OWN_INDEX for it in kept):
        kept += [it for it in listing.files if PurePosixPath(it.path).match("onnx/*.onnx")]
    return kept


def _components(text: bytes, source: str) -> list[str]:
    """Folders of the pipeline: what `model_index.json` maps to [library, class]."""
    try:
        index: Any = json.loads(text)
        if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
            raise ValueError("it names no pipeline class")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{INDEX} of {source} cannot be read: {error}") from error
    return [
        name
        for name, made_of in index.items()
        if isinstance(made_of, list) and len(made_of) == 2 and all(made_of) and "/" not in name and ".." not in name
    ]


def _is_settings(file: Listed) -> bool:
    name = PurePosixPath(file.path).name
    return name.lower().endswith(SETTINGS) and ".index." not in name


def _variants(files: Iterable[Listed]) -> set[str]:
    matches = (_WEIGHTS.fullmatch(PurePosixPath(it.path).name) for it in files)
    return {match["variant"] or "" for match in matches if match}


def _variant(listing: Listing, parts: dict[str, list[Listed]], asked: str) -> str | None:
    """The one that every component with weights has; None: each in the variant it has. Half precision, if there is."""
    have = [_variants(files) for files in parts.values() if _variants(files)]
    everywhere = set.intersection(*have) if have else set()
    if asked:
        wanted = "" if asked == "full" else asked
        if wanted not in everywhere:
            known = ", ".join(sorted(name or "full" for name in everywhere)) or "none as a whole"
            raise InvalidRequest(f"{listing.source} has no variant {asked}; it has: {known}")
        return wanted
    return next((name for name in _PREFERRED if name in everywhere), None)


def _weights(listing: Listing, name: str, files: Sequence[Listed], variant: str | None) -> list[Listed]:
    found = _variants(files)
    if not found:
        if any(it.path.lower().endswith(PICKLES) for it in files):
            raise InvalidRequest(
                f"{name} of {listing.source} is there as a pickle checkpoint only, and loading one runs whatever code "
                "is in it; look for another version of the model, as .safetensors"
            )
        return []
    wanted = variant if variant in found else "" if "" in found else min(found)
    matched = [(it, _WEIGHTS.fullmatch(PurePosixPath(it.path).name)) for it in files]
    mine = [(it, match["part"]) for it, match in matched if match and (match["variant"] or "") == wanted]
    if whole := [it for it, part in mine if not part]:
        return whole
    indexes = [(it, _WEIGHTS_INDEX.fullmatch(PurePosixPath(it.path).name)) for it in files]
    return [it for it, _ in mine] + [it for it, match in indexes if match and (match["variant"] or "") == wanted]
