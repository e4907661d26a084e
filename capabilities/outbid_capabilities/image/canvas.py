"""One job under way: takes what the engine draws, encodes it elsewhere, and tells the daemon."""

from __future__ import annotations

import os
import re
import threading
import time
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from outbid_capabilities.image import files, film, pictures

if TYPE_CHECKING:
    from outbid_capabilities.image.engine import Facts, Picture
    from outbid_capabilities.image.request import Order

PREVIEW_S = 0.5
"""Between two previews, and before the first: a picture that takes less needs none."""

CHECKPOINT_S = 2.0
"""Drawing that is lost at most with a node, beside the step under way."""

NAME_CHARS = 48

Measured = Mapping[str, tuple[float, float]]


class Listener(Protocol):
    """What a canvas reports to: the runner kit's Attempt, or a bench's own."""

    save_wanted: bool
    heard: bool

    @property
    def cancelled(self) -> threading.Event: ...
    def chunk(self, data: Mapping[str, Any], *payloads: bytes) -> None: ...
    def progress(self, step: int, steps: int, note: str = "", eta_s: float | None = None) -> None: ...
    def checkpoint(self, step: int, steps: int, data: bytes) -> None: ...
    def done(
        self, result: Mapping[str, Any], timings: Any = None, measured: Any = None, payloads: Sequence[bytes] = ()
    ) -> None: ...
    def raised(self, error: BaseException) -> None: ...
    def stopped(self) -> None: ...


class Studio:
    """The threads that encode: previews never wait behind files, nor files behind previews."""

    def __init__(self) -> None:
        self.previews = ThreadPoolExecutor(1, thread_name_prefix="previews")
        self.files = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="files")

    def close(self) -> None:
        for pool in (self.previews, self.files):
            pool.shutdown(wait=False, cancel_futures=True)


class JobCanvas:
    """The engine's `Canvas`. One preview at a time is encoded; those that come meanwhile are dropped."""

    def __init__(self, listener: Listener, order: Order, studio: Studio) -> None:
        self.request, self.order = order.request, order
        self._listener, self._studio = listener, studio
        self._submitted = self._previewed = self._saved = time.monotonic()
        self._encoding = self._over = False
        self._lock = threading.Lock()

    @property
    def cancelled(self) -> bool:
        return self._listener.cancelled.is_set()

    @property
    def save_wanted(self) -> bool:
        return self._listener.save_wanted

    @property
    def preview_due(self) -> bool:
        """Whether a preview made now would be shown; with `preview_every` the engine counts the steps itself."""
        if self._encoding or self.request.preview_every == 0 or not self._listener.heard:
            return False
        return self.request.preview_every is not None or time.monotonic() - self._previewed >= PREVIEW_S

    @property
    def checkpoint_due(self) -> bool:
        """Likewise for checkpoints."""
        if self.request.checkpoint_every is not None:
            return self.request.checkpoint_every > 0
        return time.monotonic() - self._saved >= CHECKPOINT_S

    def stepped(self, step: int, steps: int, eta_s: float | None) -> None:
        if self._listener.heard:
            self._listener.progress(step, steps, eta_s=eta_s)

    def preview(self, step: int, steps: int, pictures: Sequence[Picture]) -> None:
        if self.preview_due and not self.cancelled:
            self._encoding, self._previewed = True, time.monotonic()
            self._studio.previews.submit(self._show, step, steps, pictures)

    def saved(self, step: int, steps: int, checkpoint: bytes) -> None:
        self._saved = time.monotonic()
        self._listener.checkpoint(step, steps, self.order.sealed(checkpoint))

    def done(self, pictures: Sequence[Picture], facts: Facts, measured: Measured) -> None:
        waited_s = max(0.0, time.monotonic() - self._submitted - facts.seconds)
        self._studio.files.submit(self._deliver, pictures, facts, measured, waited_s)

    def failed(self, error: BaseException) -> None:
        self._end()
        if self.cancelled:
            self._listener.stopped()
        else:
            self._listener.raised(error)

    def stopped(self) -> None:
        self._end()
        self._listener.stopped()

    # -- in the threads of the studio ----------------------------------------------------------------------------------

    def _show(self, step: int, steps: int, drawn: Sequence[Picture]) -> None:
        """A preview that fails is no reason to fail the job."""
        try:
            if self._over:
                return
            chunk = {"step": step, "steps": steps, "image": pictures.preview(drawn), "type": "image/jpeg"}
            with self._lock:
                if not self._over:
                    self._listener.chunk(chunk)
        finally:
            self._encoding = False

    def _deliver(self, drawn: Sequence[Picture], facts: Facts, measured: Measured, waited_s: float) -> None:
        begun = time.monotonic()
        try:
            payloads = self._encode(self._pasted(drawn), facts)
            timings = {"queue_s": waited_s, "draw_s": facts.seconds, "encode_s": time.monotonic() - begun}
            self._end()
            self._listener.done(self._result(facts, len(drawn)), timings, dict(measured), payloads)
        except Exception as error:
            self.failed(error)

    def _pasted(self, drawn: Sequence[Picture]) -> Sequence[Picture]:
        """Outside the mask the picture stays what it was to the last bit; latents cannot promise that."""
        image, mask = self.request.image, self.request.mask
        if image is None or mask is None:
            return drawn
        return [np.where(mask[:, :, None] >= 128, picture, image) for picture in drawn]

    def _encode(self, drawn: Sequence[Picture], facts: Facts) -> list[bytes]:
        order, request = self.order, self.request
        if request.kind == "animate":
            told = self._told(facts, order.seed)
            return [film.encode(drawn, order.format, order.quality, request.fps, request.loop, told)]
        return [
            files.encode(picture, order.format, order.quality, self._told(facts, seed))
            for picture, seed in zip(drawn, request.seeds, strict=True)
        ]

    def _told(self, facts: Facts, seed: int) -> dict[str, Any]:
        """What is written into a file."""
        if not self.order.metadata:
            return {}
        found = {"prompt": self.request.prompt, "negative_prompt": self.request.negative_prompt, "seed": seed}
        found |= {"model": self.order.model, "steps": facts.steps, "guidance": facts.guidance}
        found |= {"scheduler": facts.scheduler, "width": facts.width, "height": facts.height}
        return {name: value for name, value in found.items() if value != ""}

    def _result(self, facts: Facts, drawn: int) -> dict[str, Any]:
        """The map of an ImageResult, whose files are the payloads."""
        order, request = self.order, self.request
        is_film = request.kind == "animate"
        return {
            "images": [{"name": name, "type": files.TYPES[order.format]} for name in names(order)],
            "model": order.model,
            "seed": order.seed,
            "seeds": list(request.seeds),
            "steps": facts.steps,
            "width": facts.width,
            "height": facts.height,
            "guidance": facts.guidance,
            "scheduler": facts.scheduler,
            "seconds": facts.seconds,
            "device": facts.device,
            "dtype": facts.dtype,
            "frames": drawn if is_film else 0,
            "fps": request.fps if is_film else 0.0,
            "resumed_at": facts.resumed_at,
            "notes": [*order.notes, *facts.notes],
        }

    def _end(self) -> None:
        """No preview may follow the end."""
        with self._lock:
            self._over = True


def names(order: Order) -> list[str]:
    """File names: words of the prompt, the seed, and a number where there are several."""
    ending = files.ENDINGS.get(order.format, order.format)
    stem = f"{slug(order.request.prompt) or order.request.kind}-{order.seed}"
    count = len(order.request.seeds)
    return [f"{stem}.{ending}"] if count == 1 else [f"{stem}-{n}.{ending}" for n in range(1, count + 1)]


def slug(text: str) -> str:
    """Lower-case ASCII words with hyphens, safe in any file system."""
    plain = unicodedata.normalize("NFKD", text[:400]).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:NAME_CHARS].strip("-")
