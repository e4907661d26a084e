"""One attempt under way on this node: what its runner says goes to the caller and, at the end, to the worker."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from outbid_contracts import subjects
from outbid_contracts.capability import ModelFile
from outbid_contracts.codec import Format, encode
from outbid_contracts.errors import ErrorBody
from outbid_contracts.events import Chunk, Loading, Progressed
from outbid_contracts.messages import Award, Checkpoint, Done, Failed, Offer, SaveCheckpoint, Stopped, Work
from outbid_contracts.runner import RunDone, RunFailed
from outbid_node.catalogue import Entry
from outbid_node.checkpoints import is_sound
from outbid_node.estimating.run import Run
from outbid_node.power.meter import Spent
from outbid_node.prefix import work_done
from outbid_node.settling import MAX_MESSAGE_BYTES, too_large

if TYPE_CHECKING:
    from outbid_node.worker import Worker

log = logging.getLogger(__name__)

TELL_S = 0.1
"""How often those who look on hear how far an attempt is."""

CHECKPOINT_BYTES_S = 4 * 2**20
"""What the checkpoints of one attempt may take of the network. Beyond it some are left out, but never the last one of
an attempt that is given back.
"""


class Attempt:
    """One attempt under way: receives what its runner says (the pool's AttemptSink) and passes it on."""

    def __init__(
        self, worker: Worker, award: Award, entry: Entry, file: ModelFile | None, offer: Offer, work: Work
    ) -> None:
        """`work`: what is to be done here, as far as that is known before."""
        job = award.job
        self.worker = worker
        self.job = job
        self.number = award.attempt
        self.key = f"{job.id}/{award.attempt}"
        self.entry = entry
        self.file = file
        self.model = offer.model
        self.running_beside = max(0, offer.slots - offer.free)
        self.work = job.work
        """What the runner did, once it is through."""
        self._expected = work
        promised = worker.offering.estimate(offer, work)
        self.promised_s, self.promised_p90_s = promised.finish_s, promised.finish_p90_s
        self.slower = worker.terms(worker.is_own(job.owner, durable=job.durable)).slower
        """By what the promise was lengthened for this machine's person."""
        self.was_warm = offer.warm
        self.is_rest = bool(award.chunks or award.checkpoint)
        self.measured: dict[str, tuple[float, float]] = {}
        self.spent: Spent | None = None
        """What it took, once its runner is through."""
        self.started = time.monotonic()
        self.owner_heard = self.started
        self.chunks = self.after = award.chunks
        self.files = {"checkpoint": award.checkpoint.data} if award.checkpoint else {}
        self._save_again = self._tell_again = 0.0
        self.given_back = ""
        """Why this node stops it by itself, if it does."""
        self._format = Format.MSGPACK if job.format == Format.MSGPACK else Format.JSON

    @property
    def left_s(self) -> float:
        """How long it may still take, by what was promised; 0 if it is late."""
        return max(0.0, self.started + self.promised_p90_s - time.monotonic())

    @property
    def can_go_on_elsewhere(self) -> bool:
        resume = self.entry.capability.resume
        return resume == "checkpoint" or (resume == "tokens" and bool(self.job.reply))

    def loading(self, fraction: float | None, note: str) -> None:
        event = Loading(job=self.job.id, node=self.worker.node, model=self.model, fraction=fraction)
        self._tell(event)
        self._tell_all(event)

    def chunk(self, data: dict[str, Any], payloads: list[bytes]) -> None:
        piece = Chunk(job=self.job.id, seq=self.chunks, attempt=self.number, data=data)
        self._tell(piece)
        self.chunks += 1
        if self.job.owner == self.worker.node:
            self.worker.chunk_here(piece)

    def progress(self, step: int, steps: int, note: str, eta_s: float | None) -> None:
        event = Progressed(job=self.job.id, step=step, steps=steps, note=note, eta_s=eta_s)
        self._tell(event)
        self._tell_all(event)

    def checkpoint(self, step: int, steps: int, data: bytes) -> None:
        now = time.monotonic()
        if now < self._save_again and not self.given_back:
            return
        self._save_again = now + len(data) / CHECKPOINT_BYTES_S
        device = self.worker.device_of(self.entry, self.model)
        checkpoint = Checkpoint(step=step, steps=steps, data=data, model=self.model, device=device)
        if is_sound(checkpoint):
            save = SaveCheckpoint(job=self.job.id, attempt=self.number, node=self.worker.node, checkpoint=checkpoint)
            self.worker.save(self.job.owner, save)
        else:
            told = f"{self.key}: a checkpoint of {len(data) / 2**20:.1f} MiB after step {step} of {steps} is not kept"
            log.info(told, extra={"action": "checkpoint_refused"})

    def done(self, message: RunDone, payloads: list[bytes]) -> None:
        self._learn(message)
        result = self._with_joules(message.result)
        done = Done(result=result, timings=message.timings, chunks=self.chunks, after=self.after)
        self.worker.end(self, done, payloads)

    def _with_joules(self, result: dict[str, Any]) -> dict[str, Any]:
        """What it took, where the result has a place for it and the runner did not measure."""
        if "joules" not in self.entry.capability.result.__struct_fields__ or result.get("joules") is not None:
            return result
        self.spent = self.worker.meter.end(self.key)
        return result | {"joules": round(self.spent.energy_j, 3)} if self.spent else result

    def failed(self, message: RunFailed) -> None:
        error = ErrorBody(code=message.code, message=message.message)
        outcome = Failed(error=error, retry=message.retry, traceback=message.traceback, chunks=self.chunks)
        self.worker.end(self, outcome)

    def stopped(self) -> None:
        self.worker.end(self, Stopped(chunks=self.chunks, reason=self.given_back))

    def _tell(self, event: Any) -> None:
        if not self.job.reply:
            return
        data = encode(event, self._format)
        if len(data) <= MAX_MESSAGE_BYTES:
            self.worker.bus.post(self.job.reply, data)
        else:
            self.worker.end(self, too_large("a piece of the answer", len(data), self.chunks))
            self.worker.pool.cancel(self.key)

    def _tell_all(self, event: Any) -> None:
        """Those who look on."""
        if self.worker.tells_progress and (now := time.monotonic()) >= self._tell_again:
            self._tell_again = now + TELL_S
            self.worker.bus.post(subjects.job_event(self.job.id), encode(event, Format.JSON))

    def _took_s(self, message: RunDone) -> float:
        """What this node takes for such work. Without what the daemon adds (see `lag`), but with what an attempt needs
        that has files to fetch or a runner to be loaded.
        """
        whole_s = time.monotonic() - self.started
        runner_s = message.took_s
        if runner_s is None or not 0.0 <= runner_s <= whole_s or not self.was_warm or self.entry.capability.inputs:
            return whole_s
        self.worker.lag.note(whole_s - runner_s)
        return runner_s

    def _learn(self, message: RunDone) -> None:
        capability, file = self.entry.capability, self.file
        room = self.worker.pool.room(capability, file)
        self.measured = message.measured
        if message.kept is not None:
            self.work = work_done(self.job.work, self._expected, message.kept)
        run = Run(
            work=self.work,
            measured=message.measured,
            took_s=self._took_s(message),
            warm=self.was_warm,
            beside=(self.running_beside + max(0, room.slots - room.free)) / 2,
            part=self.is_rest,
            at_s=time.time(),
        )
        self.worker.catalogue.learner(capability, file).note(run)
