"""`chat`: real chats through the mesh beside the same engine called directly, alone and eight at once."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from outbid import Mesh
from outbid_bench.chat_engine import GREEDY, Clock
from outbid_bench.nodes import Fleet
from outbid_bench.options import Options
from outbid_bench.processes import Helper
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import Spread, ratios, spread
from outbid_capabilities.llm.choice import ENGINES, installed
from outbid_capabilities.llm.models import bundled
from outbid_capabilities.llm.sizing import default_threads

CONTEXT = 2048
SLOTS = 8
CHATS_A_ROUND = 3
TOKENS_ALONE = 128
TOKENS_TOGETHER = 64

THINGS = ("a lighthouse", "two sailors", "an old clock", "a fox in winter", "the first train", "a quiet village")

Ask = Callable[[str, int], Awaitable[dict[str, Any]]]
"""A chat: prompt and max_tokens in, `Clock.answer` out."""


@dataclass(slots=True)
class Alone:
    """One chat at a time: per contender and round the medians of tokens per second and seconds to the first text."""

    per_s: dict[str, list[float]] = field(default_factory=dict)
    first_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, answers: Sequence[dict[str, Any]]) -> None:
        self.per_s.setdefault(name, []).append(statistics.median(a["tokens"] / a["total_s"] for a in answers))
        self.first_s.setdefault(name, []).append(statistics.median(a["first_s"] for a in answers))

    def added_first_s(self, name: str, reference: str) -> Spread:
        both = zip(self.first_s[name], self.first_s[reference], strict=True)
        return spread(mine - theirs for mine, theirs in both)


@dataclass(slots=True)
class Together:
    """Eight chats: tokens per second of all together, one number per round."""

    per_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, per_s: float) -> None:
        self.per_s.setdefault(name, []).append(per_s)


async def run(options: Options) -> Section:
    path = bundled()
    engines = [name for name, module in ENGINES.items() if installed(module)]
    if path is None or not engines:
        raise SystemExit("the subset `chat` needs an engine (extra `llm` or `llm-prebuilt`) and the default model")
    threads = options.threads or default_threads()
    async with AsyncExitStack() as stack:
        options.say(f"chat: loading {', '.join(engines)}")
        mesh = {name: await _through_mesh(stack, name, threads, options.folder) for name in engines}
        direct = {name: await _direct(stack, name, path, threads, options.folder) for name in engines}
        alone = await _alone(mesh, direct, options)
        http = await _http(stack, path, threads, options.folder) if "xllamacpp" in engines else None
        together = await _together(mesh, http, options)
    return _section(engines, alone, together, path.name, threads)


# -- the contenders ----------------------------------------------------------------------------------------------------


async def _through_mesh(stack: AsyncExitStack, engine: str, threads: int, folder: Path) -> Ask:
    """A lone node with this engine, asked through the SDK."""
    flags = {"engine": engine, "threads": threads, "slots": SLOTS, "context": CONTEXT}
    words = [word for key, value in flags.items() for word in ("--set", f"llm.{key}={value}")]
    fleet = await stack.enter_async_context(Fleet(folder / engine, words))
    node = await fleet.add("n")
    mesh = await stack.enter_async_context(Mesh(state=node.state))

    async def ask(prompt: str, max_tokens: int) -> dict[str, Any]:
        clock = Clock()
        stream = mesh.chat(prompt, max_tokens=max_tokens, **GREEDY)
        async for chunk in stream:
            clock.piece(chunk.text)
        return clock.answer((await stream.reply()).usage.completion_tokens)

    return ask


async def _direct(stack: AsyncExitStack, engine: str, path: Path, threads: int, folder: Path) -> Ask:
    arguments = (engine, str(path), str(threads), str(CONTEXT), "1")
    helper = await stack.enter_async_context(Helper("chat_engine", *arguments, log=folder / "direct.log"))

    async def ask(prompt: str, max_tokens: int) -> dict[str, Any]:
        return await helper.ask(prompt=prompt, max_tokens=max_tokens)

    return ask


async def _http(stack: AsyncExitStack, path: Path, threads: int, folder: Path) -> Ask:
    arguments = ("http", str(path), str(threads), str(CONTEXT), str(SLOTS))
    helper = await stack.enter_async_context(Helper("chat_engine", *arguments, log=folder / "http.log"))
    url = helper.hello["url"]

    async def ask(prompt: str, max_tokens: int) -> dict[str, Any]:
        return await _stream_http(url, prompt, max_tokens)

    return ask


async def _stream_http(url: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """A streamed chat of OpenAI's API by hand: any HTTP library would add its own cost to the server's."""
    address, clock, tokens = urlsplit(url), Clock(), 0
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": True}
    data = json.dumps(body | GREEDY | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    async for line in reader:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            for choice in chunk.get("choices", ()):
                clock.piece(choice["delta"].get("content"))
    writer.close()
    if not tokens:
        raise RuntimeError("xllamacpp's server gave no answer")
    return clock.answer(tokens)


# -- the measurements --------------------------------------------------------------------------------------------------


def _prompt(round: int, n: int) -> str:
    """Never the same twice, so that no engine has more of it in its cache than the shared beginning."""
    return f"Write a long story, number {round * 100 + n}, about {THINGS[(round + n) % len(THINGS)]}."


def _direct_name(engine: str) -> str:
    return f"{engine}, called directly"


def _mesh_name(engine: str) -> str:
    return f"Outbid with {engine}"


HTTP = "xllamacpp's own HTTP server, 8 at once"


async def _alone(mesh: dict[str, Ask], direct: dict[str, Ask], options: Options) -> Alone:
    contenders = {_direct_name(name): ask for name, ask in direct.items()}
    contenders |= {_mesh_name(name): ask for name, ask in mesh.items()}
    found = Alone()
    options.say("chat: one at a time")
    for ask in contenders.values():
        await ask(_prompt(99, 0), 16)  # loads the model
    for round in range(options.rounds):
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for n in range(CHATS_A_ROUND):
            for name, ask in contenders.items():
                answers[name].append(await ask(_prompt(round, n), options.few_or_many(48, TOKENS_ALONE)))
        for name, found_answers in answers.items():
            found.add(name, found_answers)
    return found


async def _together(mesh: dict[str, Ask], http: Ask | None, options: Options) -> Together:
    contenders: dict[str, Callable[[list[str], int], Awaitable[float]]] = {}
    for name, ask in mesh.items():
        contenders[_one_after(name)] = _sequential(ask)
        contenders[_at_once(name)] = _concurrent(ask)
    if http is not None:
        contenders[HTTP] = _concurrent(http)
    found = Together()
    options.say("chat: eight at once")
    tokens = options.few_or_many(24, TOKENS_TOGETHER)
    for run in contenders.values():
        await run([_prompt(98, n) for n in range(SLOTS)], 8)  # warm up
    for round in range(options.rounds):
        prompts = [_prompt(50 + round, n) for n in range(SLOTS)]
        for name, run in contenders.items():
            found.add(name, await run(prompts, tokens))
    return found


def _one_after(engine: str) -> str:
    return f"{_mesh_name(engine)}, one after the other"


def _at_once(engine: str) -> str:
    return f"{_mesh_name(engine)}, 8 at once"


def _sequential(ask: Ask) -> Callable[[list[str], int], Awaitable[float]]:
    async def run(prompts: list[str], max_tokens: int) -> float:
        begun = time.perf_counter()
        answers = [await ask(prompt, max_tokens) for prompt in prompts]
        return _tokens(answers) / (time.perf_counter() - begun)

    return run


def _concurrent(ask: Ask) -> Callable[[list[str], int], Awaitable[float]]:
    async def run(prompts: list[str], max_tokens: int) -> float:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(ask(prompt, max_tokens) for prompt in prompts))
        return _tokens(answers) / (time.perf_counter() - begun)

    return run


def _tokens(answers: Sequence[dict[str, Any]]) -> int:
    return sum(answer["tokens"] for answer in answers)


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(engines: Sequence[str], alone: Alone, together: Together, model: str, threads: int) -> Section:
    section = Section(
        "chat",
        "Chat: a language model through the mesh",
        f"{model}, {threads} thread{'s' if threads > 1 else ''} for every contender, {CONTEXT} tokens of context, "
        "greedy, streamed, warm, every prompt new.",
    )
    section.tables = [_alone_table(engines, alone), _together_table(engines, together)]
    section.aims = [*_alone_aims(engines, alone), *_together_aims(engines, together)]
    return section


def _alone_table(engines: Sequence[str], alone: Alone) -> Table:
    rows = []
    for engine in engines:
        for name in (_direct_name(engine), _mesh_name(engine)):
            reference = _direct_name(engine)
            rows.append(
                (
                    name,
                    spread(alone.per_s[name]).text("", 1),
                    ratios(alone.per_s[name], alone.per_s[reference]).text("x"),
                    ratios(alone.per_s[name], alone.per_s[_direct_name(engines[0])]).text("x"),
                    spread(alone.first_s[name]).scaled(1000).text(" ms", 1),
                    alone.added_first_s(name, reference).scaled(1000).text(" ms", 1),
                )
            )
    columns = ("what", "tokens/s", "of same engine", f"of {engines[0]}", "first token", "added")
    notes = (
        "Tokens of the whole answer over the whole time, first token included. Direct: a Python program that does "
        "nothing else; through the mesh: SDK, auction, runner process, stream.",
        "Promise: nothing is kept; through the mesh the chat goes on elsewhere if its node dies.",
    )
    return Table("One chat at a time", columns, rows, notes)


def _together_table(engines: Sequence[str], together: Together) -> Table:
    rows = []
    for engine in engines:
        for name in (_one_after(engine), _at_once(engine)):
            rows.append(_together_row(together, name, _one_after(engine)))
    if HTTP in together.per_s:
        rows.append(_together_row(together, HTTP, None))
    return Table(
        "Eight chats on one node", ("what", "tokens/s of all", "of one after the other", "of its server"), rows
    )


def _together_row(together: Together, name: str, alone: str | None) -> tuple[str, ...]:
    mine, http = together.per_s[name], together.per_s.get(HTTP)
    of_alone = ratios(mine, together.per_s[alone]).text("x") if alone else "-"
    return name, spread(mine).text("", 1), of_alone, ratios(mine, http).text("x") if http else "-"


def _alone_aims(engines: Sequence[str], alone: Alone) -> list[Aim]:
    aims = []
    for engine in engines:
        ratio = ratios(alone.per_s[_mesh_name(engine)], alone.per_s[_direct_name(engine)])
        aims.append(Aim(f"tokens/s of a chat, of {engine} direct", "≥ 0.95x", ratio.text("x"), ratio.median >= 0.95))
        added = alone.added_first_s(_mesh_name(engine), _direct_name(engine)).scaled(1000)
        aims.append(Aim(f"added to first token, {engine}", "≤ 10 ms", added.text(" ms", 1), added.median <= 10))
    return aims


def _together_aims(engines: Sequence[str], together: Together) -> list[Aim]:
    aims = []
    for engine in engines:
        mine = together.per_s[_at_once(engine)]
        gain = ratios(mine, together.per_s[_one_after(engine)])
        aims.append(Aim(f"8 at once, of one after the other, {engine}", "≥ 1.7x", gain.text("x"), gain.median >= 1.7))
        if http := together.per_s.get(HTTP):
            ratio = ratios(mine, http)
            aims.append(Aim(f"8 at once, of its server, {engine}", "≥ 0.95x", ratio.text("x"), ratio.median >= 0.95))
    return aims
