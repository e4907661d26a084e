"""Draws with the packaged model on ONNX Runtime: no torch, loads in half a second, some 120 MiB resident."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from outbid_capabilities.image import onnx_model
from outbid_capabilities.image.engine import Canvas, EngineOptions, Facts, Progress, Request
from outbid_capabilities.image.onnx_job import Job
from outbid_capabilities.image.onnx_model import OnnxModel
from outbid_capabilities.image.onnx_schedule import NAMES
from outbid_capabilities.runner_kit import RunError

if TYPE_CHECKING:
    from outbid_capabilities.image.engine import Picture
    from outbid_capabilities.image.onnx_noise import Latents

SLOTS = 4
"""Where the settings say nothing; more in one pass gain little on a CPU."""

WARM_S = 120.0


class OnnxEngine:
    """The `Engine` of `outbid_capabilities.image.engine`. One thread computes, step by step: every round takes all jobs
    with latents of the same size through the UNet together, at whichever step each of them is.
    """

    def __init__(self, options: EngineOptions, progress: Progress) -> None:
        """Load and warm up. Raises RunError (runner_unavailable) for a folder that is not for this engine."""
        threads = options.threads or onnx_model.default_threads()
        self._model = OnnxModel(Path(options.path), threads, progress)
        self.slots = options.slots or SLOTS
        self.info: dict[str, Any] = {
            "device": "cpu",
            "dtype": "float32",
            "threads": threads,
            "onnxruntime": ort.__version__,
            "schedulers": list(NAMES),
        }
        self._inbox: queue.SimpleQueue[Canvas | None] = queue.SimpleQueue()
        self._jobs: list[Job] = []
        threading.Thread(target=self._work, name="onnx", daemon=True).start()
        progress(0.8, "warming up")
        self.rates = self._warm_up()

    def submit(self, canvas: Canvas) -> None:
        self._inbox.put(canvas)

    def close(self) -> None:
        """The thread ends after the round it is in; what it was drawing is given up."""
        self._inbox.put(None)

    # -- the engine's thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._admit():
            for jobs in _same_shape(self._jobs):
                self._round(jobs)

    def _admit(self) -> bool:
        """Take in what was submitted, wait if there is nothing to do. False: it is time to end."""
        while not self._jobs or not self._inbox.empty():
            canvas = self._inbox.get()
            if canvas is None:
                return False
            self._begin(canvas)
        return True

    def _begin(self, canvas: Canvas) -> None:
        if canvas.cancelled:
            canvas.stopped()
            return
        try:
            self._jobs.append(Job(canvas, self._model))
        except Exception as error:
            canvas.failed(_translated(error))

    def _round(self, jobs: Sequence[Job]) -> None:
        """One step of these jobs. If it fails, each goes by itself, so that one fails for all no more than once."""
        jobs = [job for job in jobs if not self._stopped(job)]
        try:
            velocities = self._denoise(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._round([job])
            else:
                self._fail(jobs[0], error)
            return
        for job, velocity in zip(jobs, velocities, strict=False):
            try:
                job.take(velocity)
                if job.finished:
                    job.finish()
                    self._jobs.remove(job)
            except Exception as error:
                self._fail(job, error)

    def _stopped(self, job: Job) -> bool:
        if not job.canvas.cancelled:
            return False
        self._jobs.remove(job)
        try:
            if job.canvas.save_wanted:
                job.save()
        finally:
            job.canvas.stopped()
        return True

    def _fail(self, job: Job, error: BaseException) -> None:
        self._jobs.remove(job)
        job.canvas.failed(_translated(error))

    def _denoise(self, jobs: Sequence[Job]) -> list[Latents]:
        """What the UNet says for each job; nothing at all if all of them were cancelled meanwhile."""
        if not jobs:
            return []
        wanted = [job.rows() for job in jobs]
        latents, words = (np.concatenate([rows[n] for rows in wanted]) for n in (0, 2))
        timesteps = [t for rows in wanted for t in rows[1]]
        part, found = onnx_model.rows(*jobs[0].shape), []
        for n in range(0, len(latents), part):
            if all(job.canvas.cancelled for job in jobs):
                return []
            found.append(self._model.denoise(latents[n : n + part], timesteps[n : n + part], words[n : n + part]))
        ends = np.cumsum([len(rows[0]) for rows in wanted])[:-1]
        return np.split(np.concatenate(found), ends)

    # -- warming up ----------------------------------------------------------------------------------------------------

    def _warm_up(self) -> dict[str, float]:
        """Measured seconds for each of `engine.units`; the first pass is slow and not counted."""
        self._draw_one(steps=1)
        return {unit: seconds / amount for unit, (amount, seconds) in self._draw_one(steps=None).items()}

    def _draw_one(self, steps: int | None) -> Mapping[str, tuple[float, float]]:
        warm = _Warm(Request(kind="generate", prompt="red apple", steps=steps, preview_every=0, checkpoint_every=0))
        self.submit(warm)
        if not warm.over.wait(WARM_S):
            raise RunError(f"the model drew nothing within {WARM_S:.0f} s", code="runner_unavailable")
        if warm.error is not None:
            raise warm.error
        return warm.measured


class _Warm:
    """The canvas of a warm-up."""

    cancelled = save_wanted = preview_due = checkpoint_due = False

    def __init__(self, request: Request) -> None:
        self.request, self.over = request, threading.Event()
        self.measured: Mapping[str, tuple[float, float]] = {}
        self.error: BaseException | None = None

    def stepped(self, step: int, steps: int, eta_s: float | None) -> None: ...

    def preview(self, step: int, steps: int, pictures: Sequence[Picture]) -> None: ...

    def saved(self, step: int, steps: int, checkpoint: bytes) -> None: ...

    def done(self, pictures: Sequence[Picture], facts: Facts, measured: Mapping[str, tuple[float, float]]) -> None:
        self.measured = measured
        self.over.set()

    def failed(self, error: BaseException) -> None:
        self.error = error
        self.over.set()

    def stopped(self) -> None:
        self.over.set()


def _same_shape(jobs: Iterable[Job]) -> list[list[Job]]:
    groups: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.shape, []).append(job)
    return list(groups.values())


def _translated(error: BaseException) -> BaseException:
    """ONNX Runtime has no exception of its own for a lack of memory."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "bad_alloc" in text:
        return RunError("the memory did not do; ask for a smaller or for fewer pictures at once", code="out_of_memory")
    return error
