"""`chat`: one to sixteen streamed chats at once, and conversations, through the mesh and without it.

All contenders stay loaded and take turns, level by level within each round. Every prompt begins with words that nobody
has read before, so that no cache helps; only the conversations may use one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from outbid import Mesh
from outbid_bench.chat_asking import Ask, chat_flags, started, through_nats, through_sdk
from outbid_bench.chat_engine import Answer, Messages
from outbid_bench.chat_found import LLAMA_CPP, NATS, XLLAMACPP, Figures, Found, direct_name, mesh_name
from outbid_bench.chat_report import section
from outbid_bench.chat_turns import Turns
from outbid_bench.chat_two_nodes import ASKED, measure_two_nodes
from outbid_bench.nodes import Fleet
from outbid_bench.options import Options
from outbid_bench.report import Section
from outbid_capabilities.llm.choice import ENGINES, installed
from outbid_capabilities.llm.models import bundled
from outbid_capabilities.llm.sizing import default_threads

LEVELS = (1, 4, 8, 16)
"""Chats at once."""
QUICK_LEVELS = (1, 8)
SLOTS = LEVELS[-1]
CONTEXT = 1024
"""Tokens per slot; a conversation of five turns has 250."""
TOKENS = {1: 48, 4: 32, 8: 48, 16: 32}
"""Of each answer, by level. The same for the levels that are compared with each other."""
QUICK_TOKENS = 24
CHATS_ALONE = 2
"""One after the other in each round: a single one has too few pauses for the longest of a hundred."""

SUBJECTS = ("a lighthouse", "two sailors", "an old clock", "a fox in winter", "the first train", "a quiet village")


@dataclass(frozen=True, slots=True)
class Contender:
    """`direct`: it takes one chat at a time."""

    ask: Ask
    direct: bool = False


async def run(options: Options) -> Section:
    path = bundled()
    engines = [name for name, module in ENGINES.items() if installed(module)]
    if path is None or not engines:
        raise SystemExit("the subset `chat` needs an engine (extra `llm` or `llm-prebuilt`) and the default model")
    threads, prompts = options.threads or default_threads(), Prompts()
    async with AsyncExitStack() as stack:
        options.say(f"chat: loading {', '.join(engines)}, and what they are compared with")
        contenders = await _contenders(stack, engines, path, threads, options.folder)
        found = await _levels(contenders, prompts, options)
        turns = await _conversations(contenders, prompts, options)
    async with AsyncExitStack() as stack:
        options.say("chat: two nodes")
        fleet, mesh = await _node(stack, engines[0], threads, options.folder / "two")
        rounds = options.few_or_many(1, options.rounds)
        two_nodes = await measure_two_nodes(fleet, mesh, rounds, prompts.opening)
    return section(engines, found, turns, two_nodes, _about(path, threads))


def _about(path: Path, threads: int) -> str:
    return (
        f"{path.name}, {threads} thread{'s' if threads > 1 else ''} for every engine (a node leaves one core free: "
        f"with as many threads as cores a busy neighbour stalls every layer), {SLOTS} slots of {CONTEXT} tokens, "
        "greedy, streamed, warm. Every prompt is new, so no cache helps but in the conversations."
    )


# -- the contenders ----------------------------------------------------------------------------------------------------


async def _contenders(
    stack: AsyncExitStack, engines: Sequence[str], path: Path, threads: int, folder: Path
) -> dict[str, Contender]:
    """A helper or a lone node for each; the plain client asks the node of the first engine."""
    found: dict[str, Contender] = {}
    for engine in engines:
        ask = await started(stack, folder, engine, path, threads, CONTEXT, 1)
        found[direct_name(engine)] = Contender(ask, direct=True)
    for engine in engines:
        fleet, mesh = await _node(stack, engine, threads, folder / engine)
        found[mesh_name(engine)] = Contender(through_sdk(mesh))
        if engine == engines[0]:
            found[NATS] = Contender(await through_nats(stack, fleet.nodes[0]))
    for name, kind in _servers(engines).items():
        found[name] = Contender(await started(stack, folder, kind, path, threads, CONTEXT, SLOTS))
    return found


async def _node(stack: AsyncExitStack, engine: str, threads: int, folder: Path) -> tuple[Fleet, Mesh]:
    fleet = await stack.enter_async_context(Fleet(folder, chat_flags(engine, threads, SLOTS, CONTEXT)))
    node = await fleet.add(ASKED)
    return fleet, await stack.enter_async_context(Mesh(state=node.state))


def _servers(engines: Sequence[str]) -> dict[str, str]:
    """Those that can be started here, and as what."""
    found = {XLLAMACPP: "xllamacpp-server"} if "xllamacpp" in engines else {}
    if "llama-cpp-python" in engines and find_spec("uvicorn") and find_spec("starlette_context"):
        found[LLAMA_CPP] = "llama-cpp-server"
    return found


# -- the measurements --------------------------------------------------------------------------------------------------


class Prompts:
    """New words each time: the first ones differ, so that no cache has more of it than the template's mark."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._random = random.Random(8)

    def opening(self) -> str:
        return f"{self._random.randrange(10**6):06d}"

    def story(self) -> Messages:
        subject = SUBJECTS[next(self._numbers) % len(SUBJECTS)]
        return [
            {"role": "system", "content": self.opening()},
            {"role": "user", "content": f"Write a long story about {subject}."},
        ]


async def _levels(contenders: Mapping[str, Contender], prompts: Prompts, options: Options) -> Found:
    levels = options.few_or_many(QUICK_LEVELS, LEVELS)
    for contender in contenders.values():
        await _together(contender, prompts, 1 if contender.direct else levels[-1], 4)  # loads the model
    found = {name: {n: Figures() for n in levels if n == 1 or not it.direct} for name, it in contenders.items()}
    for round, level in itertools.product(range(options.rounds), levels):
        options.say(f"chat: round {round + 1} of {options.rounds}, {level} at once")
        tokens = options.few_or_many(QUICK_TOKENS, TOKENS[level])
        taking_part = {name: it for name, it in contenders.items() if level in found[name]}
        for name, (answers, took_s) in (await _round(taking_part, prompts, level, tokens, round)).items():
            found[name][level].add(answers, took_s)
    return found


async def _round(
    contenders: Mapping[str, Contender], prompts: Prompts, level: int, tokens: int, round: int
) -> dict[str, tuple[list[Answer], float]]:
    """Of each contender the answers, and how long they took. Chats alone are few and short, so these alternate."""
    found: dict[str, tuple[list[Answer], float]] = {name: ([], 0.0) for name in contenders}
    for again in range(CHATS_ALONE if level == 1 else 1):
        for name in _turned(list(contenders), round + again):
            answers, took_s = await _together(contenders[name], prompts, level, tokens)
            found[name] = (found[name][0] + answers, found[name][1] + took_s)
    return found


def _turned(names: Sequence[str], by: int) -> list[str]:
    """Another one begins in each round: who comes after whom shall not matter."""
    by %= len(names)
    return [*names[by:], *names[:by]]


async def _together(contender: Contender, prompts: Prompts, level: int, tokens: int) -> tuple[list[Answer], float]:
    asked = [contender.ask(prompts.story(), tokens) for _ in range(level)]
    begun = time.perf_counter()
    answers = await asyncio.gather(*asked)
    return answers, time.perf_counter() - begun


async def _conversations(contenders: Mapping[str, Contender], prompts: Prompts, options: Options) -> Turns:
    """Left out: the plain client, whose node is asked anyway, and engines called directly: they are in the servers."""
    names = [name for name, it in contenders.items() if not it.direct and name != NATS]
    turns, rounds = Turns(), options.few_or_many(1, options.rounds)
    for round in range(rounds):
        options.say(f"chat: round {round + 1} of {rounds}, conversations")
        for name in _turned(names, round):
            await turns.measure(name, contenders[name].ask, prompts.opening)
    return turns
