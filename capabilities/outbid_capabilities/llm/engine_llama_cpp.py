"""Continuous batching on llama-cpp-python: one thread decodes, and each of its steps serves every chat at once.

A step's batch holds the last token of every chat that is writing and a piece of the prompts that are being read. How
large a piece is follows from the measured reading speed, so that a long prompt does not hold up the others, nor the
answer to a cancel.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outbid_capabilities.llm.answer import Chat
from outbid_capabilities.llm.engine import Emit, EngineOptions, finish_step
from outbid_capabilities.llm.llama_cpp_low import (
    N_BATCH,
    Context,
    Model,
    Sampler,
    gpu_supported,
    schema_grammar,
)
from outbid_capabilities.llm.request import overflow
from outbid_capabilities.llm.template import Template
from outbid_capabilities.runner_kit import RunError

STALL_S = 0.25
"""Longest pause that reading a prompt may cause in the chats that are writing."""

ALONE_S = 0.5
"""The same where nobody is writing: a cancel waits that long at most."""

MIN_LOAN = 16
"""Tokens that another slot must have read to make copying its whole cache worth it (about 5 in time)."""

MIN_PIECE = 32
"""Tokens of a prompt read per step at least: smaller pieces waste the matrix kernels."""


@dataclass(slots=True)
class Job:
    """A chat with its prompt as tokens, and the grammar of its schema."""

    chat: Chat
    prompt: list[int]
    grammar: str | None = None


@dataclass(slots=True)
class Slot:
    """`tokens` are in its KV cache, and stay there for the next chat that begins the same way."""

    number: int
    tokens: list[int] = field(default_factory=list)
    job: Job | None = None
    sampler: Sampler | None = None
    next_token: int | None = None
    used: float = 0.0
    reading: bool = False
    """Whether the job's prompt is being read, or was."""


class LlamaCppEngine:
    """Threads: `decode` owns model, context and slots; `prepare` renders and splits prompts, so that an odd template
    or schema delays no one's tokens.
    """

    def __init__(self, options: EngineOptions, emit: Emit, *, unified: bool = False) -> None:
        self._options, self._emit, self._unified = options, emit, unified
        self._asked: queue.SimpleQueue[Chat | None] = queue.SimpleQueue()
        self._prepared: queue.SimpleQueue[Job | Chat | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._slots = [Slot(n) for n in range(options.slots)]
        self._seconds_per_token = 0.0
        self._loaded: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.info: dict[str, Any] = {"engine": "llama-cpp-python"}
        self._decoder = threading.Thread(target=self._decode_thread, name="decode", daemon=True)
        self._decoder.start()
        if (error := self._loaded.get()) is not None:
            raise error
        threading.Thread(target=self._prepare_thread, name="prepare", daemon=True).start()

    def submit(self, chat: Chat) -> None:
        self._asked.put(chat)

    def close(self) -> None:
        """Stop after the current step. Chats that run are left without an answer."""
        self._asked.put(None)
        self._decoder.join(timeout=10)

    # -- preparing -------------------------------------------------------------------------------------------------

    def _prepare_thread(self) -> None:
        while (chat := self._asked.get()) is not None:
            try:
                self._prepared.put(self._prepare(chat))
            except Exception as error:
                chat.fail(error)
                self._prepared.put(chat)
        self._prepared.put(None)

    def _prepare(self, chat: Chat) -> Job:
        request = chat.request
        prompt = self._model.tokenize(self._template.render(request.messages))
        chat.prompt_tokens = len(prompt)
        if len(prompt) >= self._options.context:
            raise overflow(len(prompt), self._options.context)
        grammar = None if request.json_schema is None else schema_grammar(request.json_schema)
        return Job(chat, prompt or [0], grammar)

    # -- decoding --------------------------------------------------------------------------------------------------

    def _decode_thread(self) -> None:
        try:
            self._load()
        except BaseException as error:
            self._loaded.put(error)
            return
        self._loaded.put(None)
        try:
            while self._receive():
                self._admit()
                self._step()
        except BaseException:  # nothing will ever be decoded again: better no process than a silent one
            traceback.print_exc()
            os._exit(1)
        self._context.close()
        self._model.close()

    def _load(self) -> None:
        try:
            self._load_with(self._options)
        except RunError:
            if self._options.gpu_layers >= 0 or not gpu_supported():
                raise
            self._load_with(replace(self._options, gpu_layers=0))  # too large for the GPU's memory, for one

    def _load_with(self, options: EngineOptions) -> None:
        self._model = Model(options)
        self._template = Template(self._model.chat_template(), *self._model.special_texts())
        self.info["gpu"] = self._model.on_gpu
        self._context = Context(self._model, options, unified=self._unified)

    def _receive(self) -> bool:
        """Take in what was prepared, waiting if there is nothing to do; False to stop."""
        idle = not self._waiting and all(slot.job is None for slot in self._slots)
        while idle or not self._prepared.empty():
            item = self._prepared.get()
            if item is None:
                return False
            if isinstance(item, Chat):
                finish_step([item], self._emit)
            else:
                self._waiting.append(item)
                idle = False
        return True

    def _admit(self) -> None:
        while self._waiting and (free := [slot for slot in self._slots if slot.job is None]):
            self._begin(self._waiting.popleft(), free)

    def _begin(self, job: Job, free: list[Slot]) -> None:
        job.chat.begin()
        slot = choose_slot(free, job.prompt)
        try:
            slot.sampler = Sampler(self._model, job.chat.request.sampling, job.grammar, job.prompt)
        except RunError as error:
            job.chat.fail(error)
            finish_step([job.chat], self._emit)
            return
        slot.job, slot.next_token, slot.reading = job, None, False

    def _start_reading(self, slot: Slot, job: Job) -> None:
        """Keep what the slot, or another one, has already read of this prompt, and forget the rest.

        A job with a seed reads its whole prompt anew: a reused prefix was computed in pieces of other sizes, and its
        last bits differ. The last token is always read, for its logits.
        """
        reuse = job.chat.request.sampling.seed is None
        shared = min(shared_prefix(slot.tokens, job.prompt), len(job.prompt) - 1) if reuse else 0
        donor = max(self._slots, key=lambda other: shared_prefix(other.tokens, job.prompt))
        lent = min(shared_prefix(donor.tokens, job.prompt), len(job.prompt) - 1) if reuse else 0
        if lent >= shared + MIN_LOAN and donor is not slot:
            self._context.copy(donor.number, slot.number)
            shared = lent
        shared = self._context.keep_prefix(slot.number, shared)
        slot.tokens, slot.reading = job.prompt[:shared], True
        job.chat.slot, job.chat.evaluated = slot.number, len(job.prompt) - shared

    def _step(self) -> None:
        touched = self._drop_cancelled()
        outputs, reading = self._fill()
        if outputs or reading:
            begun = time.perf_counter()
            code = self._context.decode()
            if code:
                touched += self._decode_failed(code)
            else:
                touched += [slot for slot, index in outputs if self._write(slot, index)]
                self._learn(reading, time.perf_counter() - begun)
        chats = [slot.job.chat for slot in touched if slot.job is not None]
        for slot in touched:
            self._release_if_ended(slot)
        if chats:
            finish_step(chats, self._emit)

    def _drop_cancelled(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.job is not None and slot.job.chat.cancelled]

    def _fill(self) -> tuple[list[tuple[Slot, int]], int]:
        """Make the batch. Returns the slots that get a token with their index, and how many prompt tokens it has."""
        running = [slot for slot in self._slots if slot.job is not None and not slot.job.chat.cancelled]
        writing = [slot for slot in running if slot.next_token is not None]
        pieces = self._pieces([slot for slot in running if slot.next_token is None], len(writing))
        outputs = [(slot, self._push(slot, [slot.next_token or 0], output=True)) for slot in writing]
        for slot, piece, last in pieces:
            index = self._push(slot, piece, output=last)
            if last:
                outputs.append((slot, index))
        return outputs, sum(len(piece) for _, piece, _ in pieces)

    def _pieces(self, reading: list[Slot], writing: int) -> list[tuple[Slot, list[int], bool]]:
        """What to read of which prompts, and whether that is the end of it.

        Before anything is pushed: a slot may copy from another only what has been computed.
        """
        found: list[tuple[Slot, list[int], bool]] = []
        room = min(self._piece(writing > 0), N_BATCH - writing)
        for slot in reading:
            if slot.job is None or room <= 0:
                continue
            if not slot.reading:
                self._start_reading(slot, slot.job)
            piece = slot.job.prompt[len(slot.tokens) : len(slot.tokens) + room]
            room -= len(piece)
            found.append((slot, piece, len(slot.tokens) + len(piece) == len(slot.job.prompt)))
        return found

    def _push(self, slot: Slot, tokens: list[int], *, output: bool) -> int:
        index = self._context.push(slot.number, len(slot.tokens), tokens, output=output)
        slot.tokens += tokens
        return index

    def _piece(self, others: bool) -> int:
        """How many prompt tokens to read in this step."""
        if not self._seconds_per_token:
            return MIN_PIECE * 4 if others else N_BATCH
        return max(MIN_PIECE, min(N_BATCH, int((STALL_S if others else ALONE_S) / self._seconds_per_token)))

    def _learn(self, reading: int, took_s: float) -> None:
        if reading >= MIN_PIECE:
            now = took_s / reading
            self._seconds_per_token = 0.7 * self._seconds_per_token + 0.3 * now if self._seconds_per_token else now

    def _write(self, slot: Slot, index: int) -> bool:
        """Draw the slot's next token. Always True: the slot was touched."""
        assert slot.job is not None
        assert slot.sampler is not None
        chat = slot.job.chat
        try:
            token = slot.sampler.sample(self._context, index)
        except RunError as error:
            chat.fail(error)
            return True
        piece = self._model.piece(token)
        if piece is None and not chat.request.ignore_end:
            chat.end("stop")
        elif chat.add(piece or b"") and len(slot.tokens) + 1 >= self._options.context:
            chat.end("length")
        slot.next_token = token
        return True

    def _decode_failed(self, code: int) -> list[Slot]:
        """The step gave nothing: its chats fail (another node may do better), the cache starts anew."""
        running = [slot for slot in self._slots if slot.job is not None]
        for slot in running:
            if slot.job is not None:
                slot.job.chat.fail(RunError(f"llama.cpp could not compute the next token (code {code})"))
        self._context.clear()
        for slot in self._slots:
            slot.tokens.clear()
        return running

    def _release_if_ended(self, slot: Slot) -> None:
        if slot.job is not None and (slot.job.chat.ended or slot.job.chat.cancelled):
            if slot.sampler is not None:
                slot.sampler.close()
            slot.job = slot.sampler = slot.next_token = None
            slot.used = time.perf_counter()


def shared_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """Length of the common beginning."""
    size = min(len(cached), len(prompt))
    if cached[:size] == prompt[:size]:
        return size
    return next(n for n in range(size) if cached[n] != prompt[n])


def choose_slot(free: Sequence[Slot], prompt: Sequence[int]) -> Slot:
    """The free slot whose conversation goes on with this prompt, else the one unused for longest.

    A slot that shares only a common beginning (a system prompt) with it keeps what it has: a copy is cheap.
    """
    shares = [(shared_prefix(slot.tokens, prompt), slot) for slot in free if slot.tokens]
    going_on = [(n, slot) for n, slot in shares if 2 * n >= len(slot.tokens)]
    if going_on:
        return max(going_on, key=lambda pair: (pair[0], -pair[1].used))[1]
    return min(free, key=lambda slot: (slot.used, slot.number))
