"""An image job as it came over the wire, made into what an engine draws from and what the file is to be like."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgpack

from outbid_capabilities.image import film
from outbid_capabilities.image.engine import Kind, Request
from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("generate", "edit", "animate")

MAX_MINTED_SEED = 2**32
"""Seeds that nobody chose are short enough to be typed."""

SCALE_FROM = 4
"""A picture to edit with more than this many times the pixels the model was trained on is scaled down to them: there a
model draws everything several times over, and the memory would not do.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the runner knows of its model. `defaults`: width, height, steps, guidance."""

    name: str
    engine: str
    defaults: Mapping[str, Any]
    loras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request, and how its pictures are to be handed out. `notes` are for the result."""

    request: Request
    model: str
    engine: str
    format: str
    quality: int = 90
    metadata: bool = True
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        return self.request.seeds[0]

    def sealed(self, checkpoint: bytes) -> bytes:
        """What goes out as the checkpoint: with the seed, which the next runner would else mint anew."""
        return cast(bytes, msgpack.packb({"engine": self.engine, "seed": self.seed, "data": checkpoint}))


def parse(capability: str, params: Mapping[str, Any], files: Mapping[str, bytes], model: Model) -> Order:
    """The order of a parameters' map and its files. Raises RunError, mostly invalid_request."""
    kind = capability.partition(".")[2]
    if kind not in KINDS:
        raise RunError(f"this runner has no capability {capability!r}", code="unknown_capability", retry=False)
    format = str(params.get("format", "gif" if kind == "animate" else "png"))
    film.check(format)
    checkpoint, seed, notes = _unsealed(files.get("checkpoint"), model.engine)
    if seed is None:
        seed = int(params["seed"]) if params.get("seed") is not None else secrets.randbelow(MAX_MINTED_SEED)
    place, more = _place(kind, params, files, model.defaults)
    count = int(params.get("n", 1)) if kind != "animate" else 1
    request = Request(
        kind=cast(Kind, kind),
        prompt=str(params["prompt"]),
        negative_prompt=str(params.get("negative_prompt") or ""),
        steps=int(params.get("steps") or model.defaults["steps"]),
        guidance=float(_given(params, "guidance", model.defaults["guidance"])),
        seeds=tuple(seed + n for n in range(count)),
        scheduler=params.get("scheduler"),
        loras=_loras(params, model),
        strength=_strength(params, int(params.get("steps") or model.defaults["steps"])),
        preview_every=params.get("preview_every"),
        checkpoint_every=params.get("checkpoint_every"),
        checkpoint=checkpoint,
        **place,
        **_film(kind, params),
    )
    return Order(
        request=request,
        model=model.name,
        engine=model.engine,
        format=format,
        quality=int(params.get("quality", 90)),
        metadata=bool(params.get("metadata", True)),
        notes=(*notes, *more),
    )


def _given(params: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    value = params.get(name)
    return otherwise if value is None else value


def _strength(params: Mapping[str, Any], steps: int) -> float | None:
    """Enough for one step: a pipeline of diffusers refuses to do none."""
    strength = params.get("strength")
    return None if strength is None else min(1.0, max(float(strength), 1.000001 / steps))


def _film(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    if kind != "animate":
        return {}
    return {
        "prompt_to": str(params.get("prompt_to") or ""),
        "frames": int(params.get("frames", 16)),
        "fps": float(params.get("fps", 8.0)),
        "loop": bool(params.get("loop", True)),
    }


def _loras(params: Mapping[str, Any], model: Model) -> tuple[tuple[str, float], ...]:
    wanted = tuple((str(lora["name"]), float(lora.get("weight", 1.0))) for lora in params.get("loras") or ())
    for name, _ in wanted:
        if name not in model.loras:
            have = ", ".join(sorted(model.loras)) or "none"
            raise RunError(f"this node has no LoRA {name!r} (it has: {have})", code="unknown_model")
    return wanted


def _unsealed(data: bytes | None, engine: str) -> tuple[bytes | None, int | None, tuple[str, ...]]:
    """(the engine's own checkpoint, the seed, notes): the seed holds also where the rest is of no use."""
    if data is None:
        return None, None, ()
    try:
        found = msgpack.unpackb(data)
        own, seed, maker = bytes(found["data"]), int(found["seed"]), found["engine"]
    except Exception:  # msgpack raises whatever it likes
        return None, None, ("the checkpoint could not be read; it was drawn from the beginning",)
    if maker != engine:
        return None, seed, (f"the checkpoint is one of {maker}, this is {engine}; it was drawn from the beginning",)
    return own, seed, ()


# -- sizes and pictures ------------------------------------------------------------------------------------------------


def _place(
    kind: str, params: Mapping[str, Any], files: Mapping[str, bytes], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Width, height, and for an edit the picture and mask in that size; notes."""
    if kind != "edit":
        return {name: int(params.get(name) or defaults[name]) for name in ("width", "height")}, ()
    from outbid_capabilities.image import pictures

    if "image" not in files:
        raise pictures.invalid("there is no picture to edit: `image` is missing")
    image = pictures.decode(files["image"], "image")
    width, height = edit_size(params, image, defaults)
    found = {"width": width, "height": height, "image": pictures.fit(image, width, height)}
    if "mask" in files:
        found["mask"] = pictures.fit_mask(pictures.decode(files["mask"], "mask"), width, height)
    scaled = width * height * SCALE_FROM < image.width * image.height and not (
        params.get("width") or params.get("height")
    )
    note = f"the picture was scaled from {image.width}x{image.height} to {width}x{height}, which suits the model"
    return found, (note,) if scaled else ()


def edit_size(params: Mapping[str, Any], image: Image, defaults: Mapping[str, Any]) -> tuple[int, int]:
    """What is asked for; one side alone keeps the picture's shape; nothing: the picture's own size, unless it is far
    beyond the model's. Multiples of 8.
    """
    width, height = params.get("width"), params.get("height")
    if width and height:
        return int(width), int(height)
    if width:
        return int(width), _eights(image.height * width / image.width)
    if height:
        return _eights(image.width * height / image.height), int(height)
    pixels = defaults["width"] * defaults["height"]
    own = image.width * image.height
    scale = (pixels / own) ** 0.5 if own > SCALE_FROM * pixels else 1.0
    return _eights(image.width * scale), _eights(image.height * scale)


def _eights(side: float) -> int:
    return min(8192, max(8, int(side + 1e-6) // 8 * 8))
