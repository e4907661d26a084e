"""`chat`: one to sixteen streamed chats at once, and conversations, through the mesh and without it.

All contenders stay loaded and take turns, level by level within each round. Every prompt begins with words that nobody
has read before, so that no cache helps; only the conversations may use one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from outbid import Mesh
from outbid_bench import chat_report
from outbid_bench.chat_asking import Ask, asking, chat_flags, helper, through_nats, through_sdk
from outbid_bench.chat_engine import Messages
from outbid_bench.chat_found import LLAMA_CPP, NATS, XLLAMACPP, Figures, Found, Together, direct_name, mesh_name
from outbid_bench.chat_steps import Steps, steps_helper
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
"""Tokens per slot; a conversation of five turns has 170."""
TOKENS = {1: 24, 4: 12, 8: 24, 16: 8}
"""Of each answer, by level. The same for the levels that are compared with each other."""
CHATS_ALONE = 2
"""In turns with the others in each round: the median of their first tokens counts, and one has too few pauses for the
longest of a hundred.
"""
WARM = 4
"""Chats at once that load a model, of as many tokens."""
STORY = "Write a long story."
STORY_TOKENS = 20
"""Of a prompt with it that are new: the template's marks, an opening, this; all prompts begin with the same three."""


@dataclass(frozen=True, slots=True)
class Contender:
    """`pid`: of the process that serves, with those below it. `direct`: it takes one chat at a time."""

    ask: Ask
    pid: int
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
    steps = await _steps(path, threads, options) if "llama-cpp-python" in engines else None
    async with AsyncExitStack() as stack:
        options.say("chat: two nodes")
        fleet, mesh = await _node(stack, engines[0], threads, options.folder / "two")
        rounds = options.few_or_many(1, options.rounds)
        two_nodes = await measure_two_nodes(fleet, mesh, rounds, prompts.opening)
    section = chat_report.section(engines, found, turns, two_nodes, _about(path, threads))
    if steps is not None:
        section.tables.insert(chat_report.BEHIND_SPEEDS, steps.table(STORY_TOKENS, TOKENS[8]))
    return section


def _about(path: Path, threads: int) -> str:
    return (
        f"{path.name}, {threads} thread{'s' if threads > 1 else ''} for every engine (a node leaves one core free: "
        f"with as many threads as cores a busy neighbour stalls every layer), {SLOTS} slots of {CONTEXT} tokens, "
        "greedy, streamed, warm. Every prompt is new, so no cache helps but in the conversations. A prompt has "
        f"{STORY_TOKENS} tokens to read, an answer {', '.join(f'{TOKENS[n]} with {n}' for n in LEVELS)} at once."
    )


# -- the contenders ----------------------------------------------------------------------------------------------------


async def _contenders(
    stack: AsyncExitStack, engines: Sequence[str], path: Path, threads: int, folder: Path
) -> dict[str, Contender]:
    """A helper or a lone node for each; the plain client asks the node of the first engine."""
    found: dict[str, Contender] = {}
    for engine in engines:
        process = await helper(stack, folder, engine, path, threads, CONTEXT, 1)
        found[direct_name(engine)] = Contender(asking(process), process.pid, direct=True)
    for engine in engines:
        fleet, mesh = await _node(stack, engine, threads, folder / engine)
        node = fleet.nodes[0]
        found[mesh_name(engine)] = Contender(through_sdk(mesh), node.process.pid)
        if engine == engines[0]:
            found[NATS] = Contender(await through_nats(stack, node), node.process.pid)
    for name, kind in _servers(engines).items():
        process = await helper(stack, folder, kind, path, threads, CONTEXT, SLOTS)
        found[name] = Contender(asking(process), process.pid)
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
    """A new opening each time, so that no cache has more of it than the template's mark and a digit or two."""

    def __init__(self) -> None:
        self._openings = iter(random.Random(8).sample(range(1000, 10000), 9000))

    def opening(self) -> str:
        return str(next(self._openings))

    def story(self) -> Messages:
        return [{"role": "system", "content": self.opening()}, {"role": "user", "content": STORY}]


async def _levels(contenders: Mapping[str, Contender], prompts: Prompts, options: Options) -> Found:
    levels = options.few_or_many(QUICK_LEVELS, LEVELS)
    for contender in contenders.values():
        await _together(contender, prompts, 1 if contender.direct else WARM, WARM)
    found = {name: {n: Figures() for n in levels if n == 1 or not it.direct} for name, it in contenders.items()}
    for round, level in itertools.product(range(options.rounds), levels):
        options.say(f"chat: round {round + 1} of {options.rounds}, {level} at once")
        taking_part = {name: it for name, it in contenders.items() if level in found[name]}
        for name, together in (await _round(taking_part, prompts, level, round)).items():
            found[name][level].add(together)
    return found


async def _round(contenders: Mapping[str, Contender], prompts: Prompts, level: int, round: int) -> dict[str, Together]:
    """Chats alone are short, so several take turns."""
    found = {name: Together() for name in contenders}
    for again in range(CHATS_ALONE if level == 1 else 1):
        for name in _shuffled(contenders, seed=round * CHATS_ALONE + again):
            found[name].add(await _together(contenders[name], prompts, level, TOKENS[level]))
    return found


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Who comes after whom shall not matter."""
    ordered = list(names)
    random.Random(seed).shuffle(ordered)
    return ordered


async def _together(contender: Contender, prompts: Prompts, level: int, tokens: int) -> Together:
    asked = [contender.ask(prompts.story(), tokens) for _ in range(level)]
    spent_s, begun = _cpu_s(contender.pid), time.perf_counter()
    answers = await asyncio.gather(*asked)
    took_s = time.perf_counter() - begun
    return Together(answers, took_s, _cpu_s(contender.pid) - spent_s)


def _cpu_s(pid: int) -> float:
    """Of a process and of all below it."""
    process, found = psutil.Process(pid), 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            found += times.user + times.system
    return found


async def _conversations(contenders: Mapping[str, Contender], prompts: Prompts, options: Options) -> Turns:
    """Left out: the plain client, whose node is asked anyway; engines called directly, they are in the servers; and
    the server that has one cache for all callers, lost to whoever asks in between.
    """
    names = [name for name, it in contenders.items() if not it.direct and name not in (NATS, LLAMA_CPP)]
    turns, rounds = Turns(), options.few_or_many(1, options.rounds)
    for round in range(rounds):
        options.say(f"chat: round {round + 1} of {rounds}, conversations")
        for name in _shuffled(names, seed=round):
            await turns.measure(name, contenders[name].ask, prompts.opening)
    return turns


async def _steps(path: Path, threads: int, options: Options) -> Steps:
    steps = Steps()
    async with AsyncExitStack() as stack:
        helper = await steps_helper(stack, options.folder, path, threads, CONTEXT, SLOTS)
        for _ in range(options.rounds):
            await steps.measure(helper)
    return steps
