"""What the engine alone gains from several chats at once: steps of llama.cpp, with nothing around them.

    python -m outbid_bench.chat_steps PATH THREADS CONTEXT SLOTS

A helper process for the subset `chat`. Whoever serves chats together can be no faster than these steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outbid_bench.processes import Helper, serve_lines
from outbid_bench.report import Table
from outbid_bench.stats import Spread, spread

LEVELS = (1, 4, 8, 16)
"""Chats that each get a token in one step."""
READ = 128
"""Tokens of one prompt in one step: reading is a large step, whether others do so too or not."""
TOKENS_PER_TURN = 24
"""So many tokens of each size in a row, at least one step."""


@dataclass(slots=True)
class Steps:
    """Seconds of one step by the number of its tokens, one number per round."""

    step_s: dict[int, list[float]] = field(default_factory=dict)

    async def measure(self, helper: Helper) -> None:
        for tokens in (*LEVELS, READ):
            answer = await helper.ask(tokens=tokens, steps=max(1, TOKENS_PER_TURN // tokens))
            self.step_s.setdefault(tokens, []).append(answer["step_s"])

    def gain(self, tokens: int) -> Spread:
        """Tokens per second of steps this large, of those for a single token."""
        pairs = zip(self.step_s[1], self.step_s[tokens], strict=True)
        return spread(tokens * one_s / step_s for one_s, step_s in pairs)

    def limit(self, chats: int, read: int, written: int) -> Spread:
        """Of so many chats at once, of one after the other, where each has so many tokens to be read and written."""
        return spread(
            (read * read_s + written * one_s) / (read * read_s + written * step_s / chats)
            for one_s, step_s, read_s in zip(
                self.step_s[1], self.step_s[chats], [step_s / READ for step_s in self.step_s[READ]], strict=True
            )
        )

    def table(self, read: int, written: int) -> Table:
        sizes = (*LEVELS, READ)
        columns = ("tokens in one step", *map(str, LEVELS), f"{READ} of a prompt")
        rows = [
            ("ms", *(spread(self.step_s[n]).scaled(1000).text("", 1) for n in sizes)),
            ("tokens/s, of one at a time", *(self.gain(n).text("x") for n in sizes)),
        ]
        notes = (
            "`llama_decode` of llama-cpp-python in a process that does nothing else, one token of each chat. Chats "
            "share the reading of the weights, not the arithmetic: a step takes the longer the more tokens it has.",
            f"It follows for chats as above, {read} tokens to read and {written} to write: 8 at once can reach "
            f"{self.limit(8, read, written).text('x')} of one after the other.",
        )
        return Table("What the engine alone gains from chats at once", columns, rows, notes)


async def steps_helper(stack: AsyncExitStack, folder: Path, *arguments: object) -> Helper:
    helper = Helper("chat_steps", *map(str, arguments), log=folder / "steps.log")
    return await stack.enter_async_context(helper)


# -- in the helper process ---------------------------------------------------------------------------------------------


class _Stepper:
    def __init__(self, path: str, threads: int, context: int, slots: int) -> None:
        from outbid_capabilities.llm.engine import EngineOptions
        from outbid_capabilities.llm.llama_cpp_low import Context, Model

        options = EngineOptions(path, slots, context, threads, gpu_layers=0)
        model = Model(options)
        self._context = Context(model, options)
        text = "A clock in a quiet village had stopped, and nobody knew how to make it go on again. " * 16
        self._prompt = model.tokenize(text)[:READ]
        self._read(range(slots), 32)

    def answer(self, asked: dict[str, Any]) -> dict[str, float]:
        tokens, steps = asked["tokens"], asked["steps"]
        return {"step_s": self._reading_s() if tokens >= READ else self._writing_s(range(tokens), steps)}

    def _writing_s(self, slots: Sequence[int], steps: int) -> float:
        """Behind 32 tokens, as in a chat that has just begun."""
        begun = time.perf_counter()
        for step in range(steps):
            for slot in slots:
                self._context.push(slot, 32 + step, [self._prompt[step]], output=True)
            self._decode()
        took_s = time.perf_counter() - begun
        for slot in slots:
            self._context.keep_prefix(slot, 32)
        return took_s / steps

    def _reading_s(self) -> float:
        self._context.keep_prefix(0, 0)
        begun = time.perf_counter()
        self._read([0], READ)
        took_s = time.perf_counter() - begun
        self._context.keep_prefix(0, 32)
        return took_s

    def _read(self, slots: Sequence[int], size: int) -> None:
        for slot in slots:
            self._context.push(slot, 0, self._prompt[:size], output=True)
            self._decode()

    def _decode(self) -> None:
        if code := self._context.decode():
            raise RuntimeError(f"llama_decode failed with {code}")


if __name__ == "__main__":
    serve_lines({}, _Stepper(sys.argv[1], *map(int, sys.argv[2:5])).answer)
