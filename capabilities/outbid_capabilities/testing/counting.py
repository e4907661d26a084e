"""`test.steps`: work in steps that can go on from a checkpoint, and whose result shows whether it did so rightly."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import msgpack

from outbid_capabilities.runner_kit import Attempt, RunError


@dataclass
class Work:
    """Each step's digest is made from the one before: one step left out or done twice shows in the last."""

    step: int = 0
    digest: bytes = b""
    runs: list[list[int]] = field(default_factory=list)
    """Process and step before its first, of all that took part."""

    def advance(self) -> None:
        self.step += 1
        self.digest = hashlib.sha256(self.digest + self.step.to_bytes(4, "big")).digest()

    def pack(self, padding: int) -> bytes:
        packed: bytes = msgpack.packb([self.step, self.digest, self.runs, bytes(padding)])
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Work | None:
        """None for what is no checkpoint."""
        try:
            step, digest, runs, _ = msgpack.unpackb(data)
        except ValueError:
            return None
        return cls(step, digest, runs)


def run(attempt: Attempt, options: dict[str, Any]) -> dict[str, Any] | None:
    params = attempt.params
    steps, every = params["steps"], params.get("checkpoint_every", 2)
    delay_s = params.get("delay_s", 0.0) * options.get("pace", 1.0)
    work = _begun(attempt)
    work.runs.append([os.getpid(), work.step])
    while work.step < steps:
        if attempt.cancelled.wait(delay_s):
            if attempt.save_wanted and every:
                _save(attempt, work, steps)
            return None
        work.advance()
        attempt.progress(work.step, steps, eta_s=(steps - work.step) * delay_s)
        if params.get("chunks"):
            attempt.chunk({"step": work.step})
        if every and work.step % every == 0:
            _save(attempt, work, steps)
        if work.step == options.get("oom_at", 0):
            raise RunError(f"out of memory after step {work.step} of {steps}", "out_of_memory")
    return {"digest": work.digest.hex(), "runs": work.runs}


def _begun(attempt: Attempt) -> Work:
    data = attempt.files.get("checkpoint")
    if data is None or attempt.params.get("ignore_checkpoint"):
        return Work()
    if attempt.params.get("die_on_checkpoint"):
        os.abort()
    return Work.unpack(data) or Work()


def _save(attempt: Attempt, work: Work, steps: int) -> None:
    garbage = attempt.params.get("garbage_checkpoints")
    data = b"\xc1 no checkpoint" if garbage else work.pack(attempt.params.get("padding", 0))
    attempt.checkpoint(work.step, steps, data)
