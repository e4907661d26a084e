"""Reads a diffusers pipeline folder as far as a daemon must know it: what it is, and whether it is safe and whole.

Nothing of it is executed, and diffusers is not imported. A folder may have an `outbid.json` beside its
`model_index.json`; all fields are optional:

    {
      "name": "emoji",                    what requests call it; default: the folder's name in lower case
      "title": "...", "licence": "...",   for people; the licence else comes from the front matter of README.md
      "width": 64, "height": 64, "steps": 8, "guidance": 4.0,    what a request gets that leaves them open
      "kinds": ["generate", "edit", "animate"],                  default: by the class of the pipeline
      "sha256": {"unet/diffusion_pytorch_model.safetensors": "<hex>"}    checked before the model is loaded
    }

With an `outbid.json` and a folder `onnx` of ONNX graphs it runs without torch too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from outbid_capabilities.image.weights import PICKLES, Weights, WeightsError, read

INDEX = "model_index.json"
OURS = "outbid.json"
MANIFEST = "outbid-model.json"
"""Written by `outbid pull` into the folders it makes (outbid_contracts.files.Manifest); its name goes before ours."""

MAX_JSON_BYTES = 16 * 2**20

WITHOUT_WEIGHTS = re.compile(r"scheduler|tokenizer|feature_extractor|processor|guider")
"""Components that are settings and vocabularies only."""

NO_PICTURES = re.compile(
    r"Audio|Music|AceStep|DanceDiffusion|ShapE|Marigold|Upscale|Upsampl|Prior(?!.*Combined)|ControlNet|Adapter"
)
FILMS = re.compile(r"Video|Animate|Wan|LTX|Mochi|Allegro|Latte|I2VGen|TextToVideo|Cosmos|SkyReels")
EDITS_ONLY = re.compile(r"Img2Img|Inpaint|Pix2Pix|Depth2Img")
EDITABLE = re.compile(r"^(StableDiffusion|Flux|LatentConsistency|Kandinsky|AltDiffusion)")
"""Pipelines that diffusers has an image-to-image sister of."""

_CLASS = re.compile(r"[A-Z][A-Za-z0-9]{2,80}Pipeline")
_LICENCE = re.compile(r"^license(?:_name)?:\s*[\"']?([\w.+ -]{2,60}?)[\"']?\s*$", re.MULTILINE)
_DISTILLED = re.compile(r"turbo|lightning|schnell|hyper|lcm|flash")

_PLAIN_STEPS, _PLAIN_GUIDANCE = 30, 5.0
_STYLES = (
    (re.compile("^StableDiffusion3"), 28, 7.0),
    (re.compile("^Flux"), 28, 3.5),
    (re.compile("^Kandinsky"), 25, 4.0),
)
"""Steps and guidance by class of pipeline, as diffusers' own signatures have them."""


def describe(folder: Path) -> dict[str, Any]:
    """A ModelFile's name, size and info, as a map. Raises WeightsError where it is not a model that can draw."""
    index, ours, manifest = load_json(folder / INDEX), optional_json(folder / OURS), optional_json(folder / MANIFEST)
    kind = _class_of(index)
    components = {name: value for name, value in index.items() if _is_component(value)}
    _check_no_code(folder, components)
    found = {name: _component(folder, name) for name in components if (folder / name).exists() or _needs_weights(name)}
    weights = [one for files in found.values() for one in files]
    if not weights:
        raise WeightsError("it has no weights at all")
    info = _facts(folder, index, ours, manifest, kind) | {
        "parameters": sum(one.parameters for one in weights),
        "dtype": max(weights, key=lambda one: one.size_bytes).dtype,
        "largest_mib": max(sum(one.size_bytes for one in files) for files in found.values()) / 2**20,
    }
    return {
        "name": str(manifest.get("name") or ours.get("name") or name_of(folder)).lower(),
        "size_mib": sum(one.size_bytes for one in weights) / 2**20,
        "info": {key: value for key, value in info.items() if value is not None},
    }


def name_of(folder: Path) -> str:
    """The last part of the hub id for a snapshot in the Hugging Face cache, else the folder's name."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def load_json(path: Path) -> dict[str, Any]:
    """Raises WeightsError or OSError."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise WeightsError(f"{path.name} is too large to be what it should be")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WeightsError(f"{path.name} is not a JSON map")
    return found


def optional_json(path: Path) -> dict[str, Any]:
    return load_json(path) if path.is_file() else {}


def _class_of(index: Mapping[str, Any]) -> str:
    name = index.get("_class_name")
    if isinstance(name, list):
        raise WeightsError("it brings a pipeline class of its own, and code of models is never run")
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
        raise WeightsError(f"{INDEX} does not name a pipeline class of diffusers")
    if NO_PICTURES.search(name):
        raise WeightsError(f"a {name} does not draw pictures from words")
    return name


def _is_component(value: Any) -> bool:
    """[library, class]; [null, null] where the pipeline goes without."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _check_no_code(folder: Path, components: Mapping[str, Any]) -> None:
    for name, (library, _) in components.items():
        if name in (".", "..") or not re.fullmatch(r"[\w.-]+", name):
            raise WeightsError(f"{INDEX} has a component with the name {name!r}")
        if (folder / f"{library}.py").exists() or any((folder / name).glob("*.py")):
            raise WeightsError(f"its {name} comes with Python code, and code of models is never run")


def _needs_weights(name: str) -> bool:
    return not WITHOUT_WEIGHTS.search(name)


def _component(folder: Path, name: str) -> list[Weights]:
    """The weights of a component that diffusers would load."""
    if not _needs_weights(name):
        return []
    if not (folder / name).is_dir():
        raise WeightsError(f"its folder {name} is missing; pull it again")
    files = sorted(path.name for path in (folder / name).iterdir() if path.is_file())
    whole = [file for file in files if file.endswith(".safetensors")]
    if not whole:
        _refuse_pickles(name, files)
    return [read(folder / name / file) for file in _chosen(folder / name, whole)]


def _refuse_pickles(name: str, files: Iterable[str]) -> None:
    if pickles := [file for file in files if Path(file).suffix in PICKLES]:
        raise WeightsError(
            f"{name}/{pickles[0]} is a pickle, and loading one runs whatever code it holds; take the safetensors files"
            " of the model, or convert it with `save_pretrained(..., safe_serialization=True)` where you trust it"
        )
    raise WeightsError(f"there are no weights (*.safetensors) in its folder {name}; pull it again")


def _chosen(folder: Path, files: list[str]) -> list[str]:
    """Of several variants (`…fp16.safetensors`) the plain one, whole: all parts that its index names."""
    variants = {_variant(file) for file in files}
    variant = "" if "" in variants else min(variants)
    mine = [file for file in files if _variant(file) == variant]
    for index in folder.glob("*.safetensors.index*.json"):
        if _variant(index.name.replace(".index", "").removesuffix(".json")) != variant:
            continue
        parts = {str(part) for part in dict(load_json(index).get("weight_map") or {}).values()}
        if lost := sorted(parts - set(files)):
            raise WeightsError(f"parts are missing: {', '.join(lost[:4])}; pull it again")
    return mine


def _variant(file: str) -> str:
    """`fp16` of `model.fp16-00001-of-00002.safetensors`, empty for a plain file."""
    stem = re.sub(r"-\d{5}-of-\d{5}", "", file.removesuffix(".safetensors"))
    return stem.partition(".")[2]


# -- what it draws like ------------------------------------------------------------------------------------------------


def _facts(
    folder: Path, index: Mapping[str, Any], ours: Mapping[str, Any], manifest: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    steps, guidance = _style(kind, name_of(folder).lower())
    side = _side(folder)
    return {
        "title": ours.get("title"),
        "pipeline": kind,
        "kinds": _kinds(kind, ours),
        "engines": ["diffusers", "onnx"] if ours and any((folder / "onnx").glob("*.onnx")) else ["diffusers"],
        "defaults": {
            "width": _positive(ours, "width", side),
            "height": _positive(ours, "height", side),
            "steps": _positive(ours, "steps", steps),
            "guidance": _guidance(ours, guidance),
        },
        "latent_factor": _latent_factor(folder),
        "licence": ours.get("licence") or manifest.get("licence") or _licence(folder),
        "scheduler": dict(enumerate(index.get("scheduler") or ())).get(1),
        "sha256": _sums(ours),
    }


def _kinds(kind: str, ours: Mapping[str, Any]) -> list[str]:
    known = ("generate", "edit", "animate")
    if isinstance(ours.get("kinds"), list):
        return [name for name in known if name in ours["kinds"]]
    if FILMS.search(kind):
        return ["animate"]
    if EDITS_ONLY.search(kind):
        return ["edit"]
    return [name for name in known if name != "edit" or EDITABLE.match(kind)]


def _style(kind: str, name: str) -> tuple[int, float]:
    if _DISTILLED.search(name) or kind.startswith("LatentConsistency"):
        return 4, 0.0
    return next((rest for pattern, *rest in _STYLES if pattern.match(kind)), (_PLAIN_STEPS, _PLAIN_GUIDANCE))  # type: ignore[return-value]


def _positive(ours: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = ours.get(name, otherwise)
    if not isinstance(value, int) or not 1 <= value <= 8192:
        raise WeightsError(f"`{name}` in {OURS} is not a number from 1 to 8192")
    return value


def _guidance(ours: Mapping[str, Any], otherwise: float) -> float:
    value = ours.get("guidance", otherwise)
    if not isinstance(value, int | float) or not 0 <= value <= 100:
        raise WeightsError(f"`guidance` in {OURS} is not a number from 0 to 100")
    return float(value)


def _sums(ours: Mapping[str, Any]) -> dict[str, str] | None:
    found = ours.get("sha256")
    if found is not None and not (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
        raise WeightsError(f"`sha256` in {OURS} is not a map from files to hex digits")
    return found


def _side(folder: Path) -> int:
    """Pixels: the side of the latents it was trained on times what the VAE makes of one; 512 where nothing tells."""
    for name in ("unet", "transformer"):
        size = optional_json(folder / name / "config.json").get("sample_size")
        side = max(size) if isinstance(size, list) and size else size
        if isinstance(side, int) and side > 0:
            return min(side * _latent_factor(folder), 2048) // 8 * 8 or 8
    return 1024 if (folder / "transformer").is_dir() else 512


def _latent_factor(folder: Path) -> int:
    """Pixels per latent along a side: each level of the VAE but the first halves it."""
    config = optional_json(folder / "vae" / "config.json")
    levels = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    return 2 ** (len(levels) - 1) if isinstance(levels, list) and 0 < len(levels) < 8 else 8


def _licence(folder: Path) -> str | None:
    """Of the front matter of a model card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        head = file.read(8192)
    front = head.split("---")[1] if head.startswith("---") and head.count("---") > 1 else ""
    found = _LICENCE.search(front)
    return found[1] if found else None
