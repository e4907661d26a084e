"""The seam between the runner and what draws: diffusers on torch, or the small model by itself on ONNX Runtime.

Imports numpy at most. Pictures are arrays of uint8, height x width x 3, RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

Kind = Literal["generate", "edit", "animate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One job, as an engine sees it: checked, with the pictures decoded. None means the model's own default.

    `seeds`: one for each picture. `mask`: height x width, 255 where the picture is to change. `checkpoint`: made by
    this kind of engine for this very request, go on from it. `preview_every`, `checkpoint_every`: in steps, 0 never;
    None: whenever the canvas says that one is due.
    """

    kind: Kind
    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seeds: tuple[int, ...] = (0,)
    scheduler: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    image: Picture | None = None
    mask: NDArray[np.uint8] | None = None
    strength: float | None = None
    prompt_to: str = ""
    frames: int = 0
    fps: float = 8.0
    loop: bool = True
    preview_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was in force in the end: the defaults filled in, and what was done otherwise than asked (`notes`)."""

    steps: int
    width: int
    height: int
    guidance: float
    scheduler: str
    device: str
    dtype: str
    resumed_at: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Canvas(Protocol):
    """One job under way, as an engine sees it. An engine calls `stepped` after each denoising step, and last `done` or
    `failed`; or `stopped` once it has seen that `cancelled` is set, which it looks at before each step. All from the
    engine's own thread; none of them blocks for long: encoding happens elsewhere.
    """

    request: Request

    @property
    def cancelled(self) -> bool: ...

    @property
    def save_wanted(self) -> bool:
        """With `cancelled`: give a last checkpoint by `saved` before `stopped`."""
        ...

    @property
    def preview_due(self) -> bool:
        """Whether a preview made now would be shown; with `preview_every` the engine counts the steps itself."""
        ...

    @property
    def checkpoint_due(self) -> bool:
        """Likewise for checkpoints."""
        ...

    def stepped(self, step: int, steps: int, eta_s: float | None) -> None: ...

    def preview(self, step: int, steps: int, pictures: Sequence[Picture]) -> None: ...

    def saved(self, step: int, steps: int, checkpoint: bytes) -> None: ...

    def done(self, pictures: Sequence[Picture], facts: Facts, measured: Mapping[str, tuple[float, float]]) -> None:
        """`pictures`: one for each seed, or the frames of the film. `measured`: see `units`."""
        ...

    def failed(self, error: BaseException) -> None: ...

    def stopped(self) -> None: ...


class Engine(Protocol):
    """Draws for several jobs at once. `submit` may be called from any thread and returns at once.

    `slots`: how many jobs it takes at once. `rates`: measured seconds per unit, see `units`. `info` is for people.
    """

    slots: int
    rates: dict[str, float]
    info: dict[str, Any]

    def submit(self, canvas: Canvas) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """`path`: the model's folder. `device`, `dtype`: "auto" or as torch calls them. `threads` None: by the processor.

    `memory_mib`: what the model and its work may take; `slots` None: as many jobs at once as fit that.
    """

    path: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    slots: int | None = None
    memory_mib: float | None = None
    loras: Mapping[str, str] = field(default_factory=dict)
    """Files of LoRAs by name."""


Progress = Callable[[float | None, str], None]


def units(steps: int, width: int, height: int, images: int) -> dict[str, float]:
    """The work of a job whose settings are all known, in every unit a caller's request may have come in.

    A request that leaves steps or size to the model cannot be counted in steps x pixels by who does not know the model;
    so there is a unit for each combination, and an engine knows and measures all four: `mpix_steps` (both given:
    millions of pixels x steps), `steps` (size left open), `mpix` (steps left open), `images` (both left open). Where
    only a part of the steps is done (an edit, a job gone on from a checkpoint), all four count for that part.
    """
    mpix = width * height * images / 1e6
    return {"mpix_steps": mpix * steps, "steps": float(steps * images), "mpix": mpix, "images": float(images)}
