"""`image.generate`, `image.edit`, `image.animate`: parameters, previews and results."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outbid_contracts.artifacts import Artifact, is_artifact_id

GENERATE = "image.generate"
EDIT = "image.edit"
ANIMATE = "image.animate"

MAX_PROMPT = 8_000
"""Characters. Text encoders read some hundred tokens at most."""

MAX_SIDE = 8_192
MAX_STEPS = 1_000
MAX_IMAGES = 64
MAX_FRAMES = 512

Scheduler = Literal["ddim", "ddpm", "dpm++2m", "dpm++2m-karras", "euler", "euler-a", "heun", "lcm", "pndm", "unipc"]
"""Default: the one the model was published with. A node refuses those that do not fit the model."""

Side = Annotated[int, Meta(ge=8, le=MAX_SIDE, multiple_of=8)]
Strength = Annotated[float, Meta(gt=0, le=1)]


class Lora(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A low-rank adaptation by the name of its file on the nodes that have it."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    weight: Annotated[float, Meta(ge=-4, le=4)] = 1.0


class _Drawing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all image capabilities take. None means the model's own default.

    `seed`: the n-th image has seed + n. Same seed, settings, model and kind of device: same image. `preview_every` and
    `checkpoint_every` are in steps, 0 for never; default: as often as costs little.
    """

    prompt: str
    negative_prompt: str = ""
    model: str | None = None
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    guidance: Annotated[float, Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None
    scheduler: Scheduler | None = None
    loras: tuple[Lora, ...] = ()
    metadata: bool = True
    """Write prompt, seed, model and settings into the file."""
    quality: Annotated[int, Meta(ge=1, le=100)] = 90
    """Of lossy formats."""
    preview_every: Annotated[int, Meta(ge=0, le=MAX_STEPS)] | None = None
    checkpoint_every: Annotated[int, Meta(ge=0, le=MAX_STEPS)] | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("`prompt` is empty")
        for name in ("prompt", "negative_prompt"):
            if (length := len(getattr(self, name))) > MAX_PROMPT:
                raise ValueError(f"`{name}` has {length} characters; at most {MAX_PROMPT} are taken")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError("`guidance` is not a number")
        if any(not math.isfinite(lora.weight) for lora in self.loras):
            raise ValueError("the weight of a LoRA is not a number")
        if len(self.loras) > 8:
            raise ValueError("at most 8 `loras`")


class ImageParams(_Drawing, frozen=True, kw_only=True, omit_defaults=True):
    """`image.generate`: a picture from words."""

    n: Annotated[int, Meta(ge=1, le=MAX_IMAGES)] = 1
    format: Literal["png", "jpeg", "webp"] = "png"


class EditParams(_Drawing, frozen=True, kw_only=True, omit_defaults=True):
    """`image.edit`: a picture from a picture and words. `image` is the content of a PNG, JPEG or WebP file (base64 in
    JSON), or `image_from` the id of an artifact; likewise the `mask`, white where the picture is to change.

    `strength`: 1 keeps nothing of the picture; outside the mask all of it is kept. Default size: that of the picture,
    rounded down to multiples of 8; one far larger than what the model was made for is scaled down to that.
    """

    image: bytes | None = None
    image_from: str | None = None
    mask: bytes | None = None
    mask_from: str | None = None
    strength: Strength | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_IMAGES)] = 1
    format: Literal["png", "jpeg", "webp"] = "png"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.image is None) == (self.image_from is None):
            raise ValueError("give either `image` (the content of a file) or `image_from` (the id of an artifact)")
        if self.mask is not None and self.mask_from is not None:
            raise ValueError("give either `mask` or `mask_from`, not both")
        for name in ("image_from", "mask_from"):
            if (id := getattr(self, name)) is not None and not is_artifact_id(id):
                raise ValueError(f"`{name}` is not the id of an artifact (<job>.<attempt>.<number>)")


class AnimateParams(_Drawing, frozen=True, kw_only=True, omit_defaults=True):
    """`image.animate`: a short film. A video model makes it; a plain one goes from picture to picture, by way of the
    noise, and from `prompt` to `prompt_to` if that is given. `loop`: the last frame leads to the first.
    """

    prompt_to: str = ""
    frames: Annotated[int, Meta(ge=2, le=MAX_FRAMES)] = 16
    fps: Annotated[float, Meta(ge=0.5, le=60)] = 8.0
    loop: bool = True
    format: Literal["gif", "webp", "mp4"] = "gif"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prompt_to) > MAX_PROMPT:
            raise ValueError(f"`prompt_to` has {len(self.prompt_to)} characters; at most {MAX_PROMPT} are taken")
        if not math.isfinite(self.fps):
            raise ValueError("`fps` is not a number")


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the stream: how the picture looks after `step` of `steps`. Several pictures come as one, side by
    side.
    """

    step: int
    steps: int
    image: bytes
    type: str = "image/jpeg"


class ImageResult(msgspec.Struct, frozen=True, kw_only=True):
    """`seeds` are those of the images; `seconds` is what drawing took, `joules` what it is thought to have taken.

    `notes` are sentences for people: what was done otherwise than asked (short of memory, another size, …).
    """

    images: tuple[Artifact, ...]
    model: str
    seed: int
    seeds: tuple[int, ...]
    steps: int
    width: int
    height: int
    guidance: float
    scheduler: str
    seconds: float
    device: str
    dtype: str
    joules: float | None = None
    frames: int = 0
    fps: float = 0.0
    resumed_at: int = 0
    """The step of the checkpoint it went on from; 0: it was drawn in one go."""
    notes: tuple[str, ...] = ()


def params_of(capability: str) -> type[Any]:
    return {GENERATE: ImageParams, EDIT: EditParams, ANIMATE: AnimateParams}[capability]
