"""The child process of `image.*`: one model, one engine, jobs of the same shape drawn together.

Imports no msgspec and no contracts: parameters come as the map of ImageParams and its like, results go as the map of
ImageResult with the files as payload frames.
"""

from __future__ import annotations

import faulthandler
import hashlib
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from outbid_capabilities.image import sizing
from outbid_capabilities.image.canvas import JobCanvas, Studio
from outbid_capabilities.image.choice import create, engine_of, missing_engine
from outbid_capabilities.image.engine import Engine, EngineOptions
from outbid_capabilities.image.models import find_loras
from outbid_capabilities.image.request import Model, Order, parse
from outbid_capabilities.runner_kit import Attempt, Progress, RunError, Runner


class ImageRunner(Runner):
    def load(self, model: dict[str, Any] | None, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
        faulthandler.enable()  # a crash of native code leaves its stack in the log
        if model is None or not model.get("path"):
            raise RunError("image.* needs a model; name one in section `image`", code="runner_unavailable")
        info = model.get("info", {})
        name = engine_of(options, info.get("engines", ("diffusers",)))
        if name is None:
            raise RunError(missing_engine(options), code="runner_unavailable")
        verify(Path(model["path"]), info.get("sha256") or {}, progress)
        engine_options = _options(model, options)
        progress(None, f"loading {model['name']} with {name}")
        self._engine = create(name, engine_options, progress)
        self._info, self._memory_mib = info, options.get("memory_mib")
        self._model = Model(
            name=str(model["name"]), engine=name, defaults=info["defaults"], loras=dict(engine_options.loras)
        )
        self._studio = Studio()
        self._desk = ThreadPoolExecutor(1, thread_name_prefix="desk")  # decoding pictures must not delay pings
        return self._ready(self._engine, float(model.get("gpu_memory_mib") or 0.0))

    def start(self, attempt: Attempt) -> None:
        self._desk.submit(self._take, attempt)

    def close(self) -> None:
        self._engine.close()
        self._studio.close()

    def _ready(self, engine: Engine, thought_mib: float) -> dict[str, Any]:
        """`thought_mib`: of the card, with all slots at work; after the warm-up less is reserved."""
        info = {"engine": self._model.engine, "loras": sorted(self._model.loras)} | engine.info
        measured_mib = gpu_memory_mib(str(info.get("device", "cpu")))
        return {
            "slots": engine.slots,
            "rates": dict(engine.rates),
            "fixed_s": 0.005,
            "gpu_memory_mib": max(measured_mib, thought_mib) if measured_mib else 0.0,
            "info": info,
        }

    def _take(self, attempt: Attempt) -> None:
        """A bad job fails by itself."""
        try:
            if attempt.cancelled.is_set():
                attempt.stopped()
                return
            order = parse(attempt.capability, attempt.params, attempt.files, self._model)
            self._check_room(order)
            self._engine.submit(JobCanvas(attempt, order, self._studio))
        except Exception as error:
            attempt.raised(error)

    def _check_room(self, order: Order) -> None:
        """One picture must fit the memory: the kernel ends a process that takes more, and all its other jobs."""
        room_mib = self._memory_mib or sizing.free_mib()
        if room_mib is None or self._engine.info.get("device", "cpu") != "cpu":
            return
        width, height = order.request.width or 0, order.request.height or 0
        need_mib = sizing.work_mib(self._info, width, height, 1, 4)
        if need_mib > room_mib:
            raise RunError(
                f"a picture of {width}x{height} takes some {need_mib / 1024:.1f} GiB with {order.model}, there are"
                f" {room_mib / 1024:.1f} GiB for it here; ask for a smaller one",
                code="out_of_memory",
            )


def gpu_memory_mib(device: str) -> float:
    """What torch holds of the graphics memory."""
    torch = sys.modules.get("torch")
    if torch is None or device == "cpu":
        return 0.0
    held = torch.mps.driver_allocated_memory() if device.startswith("mps") else torch.cuda.memory_reserved()
    return float(held) / 2**20


def _options(model: Mapping[str, Any], options: Mapping[str, Any]) -> EngineOptions:
    return EngineOptions(
        path=model["path"],
        device=str(options.get("device", "auto")),
        dtype=str(options.get("dtype", "auto")),
        threads=options.get("threads"),
        slots=options.get("slots"),
        memory_mib=options.get("memory_mib"),
        loras=find_loras(options),
    )


def verify(folder: Path, sha256: Mapping[str, str], progress: Progress) -> None:
    """What the model says of its own files must hold before native code parses them (0.1 s per 100 MB)."""
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}", code="runner_unavailable")
    for n, (name, wanted) in enumerate(sorted(sha256.items())):
        progress(0.1 * n / len(sha256), "checking the model's files")
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror}", code="runner_unavailable") from error
        if found != wanted:
            raise RunError(
                f"{folder / name} is not the file it should be (SHA-256 {found}); install or pull it anew",
                code="runner_unavailable",
            )
