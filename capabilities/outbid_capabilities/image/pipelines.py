"""A diffusers pipeline: loading it, the device and precision for it, and what it can be asked for."""

from __future__ import annotations

import copy
import hashlib
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline

from outbid_capabilities.image.engine import EngineOptions, Request
from outbid_capabilities.image.lora import Loras
from outbid_capabilities.image.memory import Economy, free_mib, is_shortage, shortage
from outbid_capabilities.image.pipeline import INDEX, describe, load_json
from outbid_capabilities.image.schedule import make
from outbid_capabilities.image.sizing import work_mib
from outbid_capabilities.image.weights import WeightsError
from outbid_capabilities.runner_kit import RunError

DENOISERS = ("unet", "transformer", "transformer_2")
"""What diffusers' pipelines call the model that runs at every step."""

MAX_ROWS = {"cpu": 16, "mps": 16, "cuda": 64}
"""Samples per forward pass (two for each picture with guidance): more make a processor no faster."""

STRENGTH = 0.8
"""Of an edit that leaves it open; with a mask all within it is drawn anew."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DTYPES |= {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A request with the model's defaults filled in. `call`: arguments of the pipeline beside prompt and generator."""

    steps: int
    width: int
    height: int
    guidance: float
    scheduler: str | None
    strength: float
    call: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class LoadedModel:
    """One model: the pipeline for each task, on shared components, and the facts about it."""

    def __init__(self, options: EngineOptions) -> None:
        self.folder = Path(options.path)
        try:
            self.found = describe(self.folder)
        except (WeightsError, OSError) as error:
            raise RunError(f"{self.folder.name} cannot be loaded: {error}", code="runner_unavailable") from None
        self.info: dict[str, Any] = self.found["info"]
        self.device = choose_device(options.device)
        self.dtype = choose_dtype(options.dtype, self.device, str(self.info.get("dtype")))
        self.base = load(self.folder, self.dtype)
        self.economy = Economy(self.base, self.device)
        self._place()
        self._room_mib = self._room(options.memory_mib)
        self.digest = fingerprint(self.folder)
        self.loras = Loras(self.base, options.loras)
        self._tasks: dict[str, Any] = {"generate": self.base}

    @property
    def makes_films(self) -> bool:
        return "num_frames" in parameters_of(self.base)

    def pipe(self, request: Request) -> Any:
        """A copy of the pipeline that does what the request wants, to be changed at will; the models are shared."""
        task = "generate" if request.kind != "edit" else ("edit" if request.mask is None else "inpaint")
        if task not in self._tasks:
            self._tasks[task] = self._sister(task)
        return copy.copy(self._tasks[task])

    def settings(self, request: Request) -> Settings:
        """Raises RunError where the model cannot do what is asked."""
        if self.makes_films and request.kind != "animate":
            raise refusal(f"this model makes films: ask it for image.animate, and another for image.{request.kind}")
        pipe, defaults = self.pipe(request), self.info["defaults"]
        width, height = self._size(request, pipe)
        steps = request.steps or defaults["steps"]
        strength = request.strength if request.strength is not None else (STRENGTH if request.mask is None else 1.0)
        if request.kind == "edit" and steps * strength < 1:
            raise refusal(f"{steps} steps at strength {strength:g} are less than one step; raise one of them")
        guidance = defaults["guidance"] if request.guidance is None else request.guidance
        make(self.base.scheduler, request.scheduler)  # refuses what does not fit
        wanted = {
            "width": width,
            "height": height,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "num_frames": request.frames,
            "negative_prompt": request.negative_prompt or None,
            "output_type": "np",
        }
        if request.kind == "edit":
            wanted |= pictures_of(request, width, height) | {"strength": strength}
        known = parameters_of(pipe)
        if lost := [name for name in ("image", "mask_image") if name in wanted and name not in known]:
            raise refusal(f"this model cannot edit pictures: its pipeline takes no `{lost[0]}`")
        call = {name: value for name, value in wanted.items() if name in known and value is not None}
        return Settings(
            steps=steps,
            width=width,
            height=height,
            guidance=guidance,
            scheduler=request.scheduler,
            strength=strength if request.kind == "edit" else 1.0,
            call=call,
            notes=tuple(_unheard(request, known)),
        )

    def rows(self, width: int | None = None, height: int | None = None) -> int:
        """Samples per forward pass that memory is thought to allow, two for a picture with guidance; default: of the
        model's own size. A shortage while drawing makes it fewer.
        """
        size = width or self.info["defaults"]["width"], height or self.info["defaults"]["height"]
        each = torch.empty(0, dtype=self.dtype).element_size()
        one, two = (work_mib(self.info, *size, pictures, each) for pictures in (1, 2))
        pictures = 1 + (self._room_mib - one) / (two - one)
        return int(max(1, min(MAX_ROWS.get(self.device.type, 16), 2 * pictures)))

    def _room(self, memory_mib: float | None) -> float:
        """For the work: what is free with the weights loaded, and what the settings leave beside them."""
        weights = sum(parameter_mib(part) for part in self.base.components.values())
        free = free_mib(self.device)
        return min(float("inf") if free is None else free, float("inf") if memory_mib is None else memory_mib - weights)

    def _place(self) -> None:
        """Onto the device, or what is needed of it at a time where all of it does not fit."""
        try:
            self.base.to(self.device)
        except Exception as error:
            if not is_shortage(error):
                raise
            self.base.to("cpu")
            if not self.economy.offload():
                raise shortage(error, self.device, self.folder.name) from error

    def _size(self, request: Request, pipe: Any) -> tuple[int, int]:
        width, height = request.width, request.height
        if request.image is not None:
            width, height = width or request.image.shape[1], height or request.image.shape[0]
        width, height = width or self.info["defaults"]["width"], height or self.info["defaults"]["height"]
        factor = size_factor(pipe)
        if request.image is not None and request.width is None and request.height is None:
            width, height = max(factor, width // factor * factor), max(factor, height // factor * factor)
        if width % factor or height % factor:
            near = " x ".join(str(max(factor, round(side / factor) * factor)) for side in (width, height))
            raise refusal(f"{width} x {height} does not fit this model: sides must be multiples of {factor}, as {near}")
        return width, height

    def _sister(self, task: str) -> Any:
        """A pipeline for another task around the same models."""
        auto = AutoPipelineForImage2Image if task == "edit" else AutoPipelineForInpainting
        try:
            pipe = auto.from_pipe(self.base)
        except ValueError:
            what = "edit pictures" if task == "edit" else "edit within a mask"
            raise refusal(f"this model ({type(self.base).__name__}) cannot {what}") from None
        pipe.set_progress_bar_config(disable=True)
        return pipe


def parameter_mib(part: Any) -> float:
    """Of a pipeline's component; what is no model has none."""
    if not isinstance(part, torch.nn.Module):
        return 0.0
    return float(sum(value.numel() * value.element_size() for value in part.parameters())) / 2**20


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline in the machine's memory, from local files in safetensors form only. Raises RunError."""
    diffusers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the argument has two names, and old versions know this one
            pipe = DiffusionPipeline.from_pretrained(
                folder,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                variant=variant_of(folder),
                **missing_of(folder),
            )
    except Exception as error:  # a model folder can be wrong in any way; nothing of it was run
        text = " ".join(str(error).split())
        raise RunError(f"{folder.name} cannot be loaded: {text:.300}", code="runner_unavailable") from error
    if "prompt" not in parameters_of(pipe):
        raise RunError(f"{folder.name} does not draw from words ({type(pipe).__name__})", code="runner_unavailable")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def variant_of(folder: Path) -> str | None:
    """The variant of files like `model.fp16.safetensors`, if there are no plain ones beside them."""
    names = [path.name.removesuffix(".safetensors") for path in folder.glob("*/*.safetensors")]
    variants = {name.rpartition(".")[2] for name in names if "." in name}
    return min(variants) if variants and all("." in name for name in names) else None


def missing_of(folder: Path) -> dict[str, None]:
    """Components that the folder says it goes without (SD 3 without T5); diffusers wants to be told."""
    return {name: None for name, value in load_json(folder / INDEX).items() if value == [None, None]}


def choose_device(wanted: str) -> torch.device:
    """Raises RunError for one that is not there."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        text = str(error).splitlines()[0]
        message = f"there is no device {wanted!r} here ({text:.100}); set image.device to {there} or auto"
        raise RunError(message, code="runner_unavailable") from None
    return device


def choose_dtype(wanted: str, device: torch.device, stored: str) -> torch.dtype:
    """Half precision on graphics cards, in the form the weights have; processors compute in float32 unless asked for
    bfloat16: few of them know float16, and all are slow at it.
    """
    if wanted != "auto" and wanted not in _DTYPES:
        raise RunError(f"image.dtype {wanted!r} is not one of auto, {', '.join(_DTYPES)}", code="runner_unavailable")
    if device.type == "cpu":
        return torch.bfloat16 if _DTYPES.get(wanted) == torch.bfloat16 else torch.float32
    if wanted != "auto":
        return _DTYPES[wanted]
    if stored == "BF16" and (device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)):
        return torch.bfloat16
    return torch.float16


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def size_factor(pipe: Any) -> int:
    """Sides are multiples of this: the VAE's step, twice that where the transformer takes patches of 2 x 2."""
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    processor = getattr(pipe, "image_processor", None) or getattr(pipe, "video_processor", None)
    packed = int(getattr(getattr(processor, "config", None), "vae_scale_factor", factor) or factor)
    patch = getattr(getattr(getattr(pipe, "transformer", None), "config", None), "patch_size", 1)
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    return max(8, packed, factor * int(patch or 1))


def pictures_of(request: Request, width: int, height: int) -> dict[str, Any]:
    """What the pipelines for editing take, at the size of the result."""
    from PIL import Image

    size = (width, height)
    found = {}
    if request.image is not None:
        found["image"] = Image.fromarray(request.image).resize(size, Image.Resampling.LANCZOS)
    if request.mask is not None:
        found["mask_image"] = Image.fromarray(request.mask).resize(size, Image.Resampling.NEAREST)
    return found


def fingerprint(folder: Path) -> str:
    """Equal for equal models, on any machine: all settings, and names and sizes of the weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}".encode())
    return digest.hexdigest()


def refusal(message: str) -> RunError:
    """What no node could do with this model."""
    return RunError(message, code="invalid_request", retry=False)


def _unheard(request: Request, known: Mapping[str, Any]) -> list[str]:
    """What is left out because the pipeline takes no such thing, as sentences."""
    found = []
    if request.negative_prompt and "negative_prompt" not in known:
        found.append("the model takes no negative prompt; it was left out")
    if request.guidance is not None and "guidance_scale" not in known:
        found.append("the model takes no guidance; it was left out")
    if request.strength is not None and "strength" not in known:
        found.append("the model takes no strength; it was left out")
    return found
