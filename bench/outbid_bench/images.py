"""`images`: pictures through the mesh beside diffusers called directly; four at once beside one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outbid import Mesh
from outbid_bench.nodes import Fleet
from outbid_bench.options import Options
from outbid_bench.processes import Helper
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import ratios, spread
from outbid_contracts.events import Chunk
from outbid_contracts.images import GENERATE

MODEL = Path("image", "emoji")
STEPS, GUIDANCE = 20, 4.0
QUICK_STEPS = 8
TOGETHER = 4
WORDS = ("red apple", "cat face", "blue heart", "rocket", "penguin", "pizza", "rainbow", "house")

Jobs = Sequence[tuple[str, int]]
"""Prompts and seeds."""

Draw = Callable[[Jobs, int], Awaitable[float]]
"""Draws them in so many steps and gives the seconds that took."""

DIRECT, DIRECT_BATCH = "diffusers, called directly", f"diffusers, called directly, batches of {TOGETHER}"
ONE, ALL = "Outbid, one after the other", f"Outbid, {TOGETHER} at once"
LITE_ONE, LITE_ALL = "Outbid on ONNX Runtime, one after the other", f"Outbid on ONNX Runtime, {TOGETHER} at once"


@dataclass(slots=True)
class Found:
    """Images per second, and seconds of a single short one; per contender one number for each round."""

    per_s: dict[str, list[float]] = field(default_factory=dict)
    short_s: dict[str, list[float]] = field(default_factory=dict)
    preview_s: list[float] = field(default_factory=list)


async def run(options: Options) -> Section:
    if find_spec("torch") is None or find_spec("diffusers") is None or find_spec("onnxruntime") is None:
        raise SystemExit("the subset `images` needs the extras `image` and `image-lite`")
    threads = options.threads or 1
    async with AsyncExitStack() as stack:
        options.say("images: loading the model three times")
        direct = await stack.enter_async_context(
            Helper("image_engine", str(emoji_folder()), str(threads), log=options.folder / "direct.log")
        )
        torch = await _node(stack, options.folder / "diffusers", "diffusers", threads)
        lite = await _node(stack, options.folder / "onnx", "onnx", threads)
        contenders = {
            DIRECT: _directly(direct, 1),
            ONE: _one_by_one(torch),
            DIRECT_BATCH: _directly(direct, TOGETHER),
            ALL: _at_once(torch),
            LITE_ONE: _one_by_one(lite),
            LITE_ALL: _at_once(lite),
        }
        found = await _measure(contenders, torch, options)
    return _section(found, threads)


def emoji_folder() -> Path:
    """The packaged model, found without importing what is beside it."""
    spec = find_spec("outbid_capabilities")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / MODEL


# -- the contenders ----------------------------------------------------------------------------------------------------


async def _node(stack: AsyncExitStack, folder: Path, engine: str, threads: int) -> Mesh:
    flags = ("--set", f"image.engine={engine}", "--set", f"image.threads={threads}")
    fleet = await stack.enter_async_context(Fleet(folder, flags))
    node = await fleet.add("n")
    return await stack.enter_async_context(Mesh(state=node.state))


def _directly(helper: Helper, batch: int) -> Draw:
    async def draw(jobs: Jobs, steps: int) -> float:
        batches = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
        answer = await helper.ask(batches=batches, steps=steps, guidance=GUIDANCE)
        return float(answer["total_s"])

    return draw


def _one_by_one(mesh: Mesh) -> Draw:
    async def draw(jobs: Jobs, steps: int) -> float:
        begun = time.perf_counter()
        for prompt, seed in jobs:
            await mesh.run(GENERATE, _params(prompt, seed, steps))
        return time.perf_counter() - begun

    return draw


def _at_once(mesh: Mesh) -> Draw:
    """So many under way all the time, as from several people."""

    async def draw(jobs: Jobs, steps: int) -> float:
        free, begun = asyncio.Semaphore(TOGETHER), time.perf_counter()

        async def one(prompt: str, seed: int) -> None:
            async with free:
                await mesh.run(GENERATE, _params(prompt, seed, steps))

        await asyncio.gather(*(one(prompt, seed) for prompt, seed in jobs))
        return time.perf_counter() - begun

    return draw


def _params(prompt: str, seed: int, steps: int) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "steps": steps, "guidance": GUIDANCE, "width": 64, "height": 64}


async def _first_preview_s(mesh: Mesh, seed: int) -> float:
    begun = time.perf_counter()
    params = _params(WORDS[0], seed, STEPS) | {"preview_every": 2}
    first_s = 0.0
    async with aclosing(mesh.stream(GENERATE, params)) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Chunk) and not first_s:
                first_s = time.perf_counter() - begun
    return first_s


# -- the measurements --------------------------------------------------------------------------------------------------


async def _measure(contenders: dict[str, Draw], torch: Mesh, options: Options) -> Found:
    found, count = Found(), options.few_or_many(4, 12)
    for draw in contenders.values():
        await draw([(WORDS[0], 0)] * TOGETHER, QUICK_STEPS)  # loads the model, warms every size of batch
    for round in range(options.rounds):
        options.say(f"images: round {round + 1} of {options.rounds}")
        jobs = [(WORDS[n % len(WORDS)], 1000 * round + n) for n in range(count)]
        for name, seconds in (await _in_turns(contenders, jobs)).items():
            found.per_s.setdefault(name, []).append(count / seconds)
        for name in (DIRECT, ONE, LITE_ONE):
            found.short_s.setdefault(name, []).append(await contenders[name]([(WORDS[1], round)], QUICK_STEPS))
        found.preview_s.append(await _first_preview_s(torch, round))
    return found


async def _in_turns(contenders: dict[str, Draw], jobs: Jobs) -> dict[str, float]:
    """Seconds of each for all jobs. A few at a time, so that a slow moment of the machine does not hit one alone."""
    seconds = dict.fromkeys(contenders, 0.0)
    for start in range(0, len(jobs), TOGETHER):
        for name, draw in contenders.items():
            seconds[name] += await draw(jobs[start : start + TOGETHER], STEPS)
    return seconds


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(found: Found, threads: int) -> Section:
    section = Section(
        "images",
        "Images: a diffusion model through the mesh",
        f"The packaged emoji model, 64 x 64, {STEPS} steps, guidance {GUIDANCE:g}, {threads} thread"
        f"{'s' if threads > 1 else ''} for every contender, warm. Through the mesh: SDK, auction, runner process, PNG "
        "with metadata, artifact on disk (synced).",
    )
    section.tables, section.aims = [_table(found)], _aims(found)
    return section


def _table(found: Found) -> Table:
    rows = [
        (
            name,
            spread(per_s).text("", 2),
            ratios(per_s, found.per_s[DIRECT]).text("x"),
            spread(found.short_s[name]).scaled(1000).text(" ms", 0) if name in found.short_s else "-",
        )
        for name, per_s in found.per_s.items()
    ]
    notes = (
        f"First preview of a picture of {STEPS} steps: {spread(found.preview_s).scaled(1000).text(' ms', 0)}.",
        "diffusers called directly writes no file.",
    )
    return Table("Images per second", ("what", "images/s", "of diffusers", f"one of {QUICK_STEPS} steps"), rows, notes)


def _aims(found: Found) -> list[Aim]:
    mesh = ratios(found.per_s[ONE], found.per_s[DIRECT])
    batched = ratios(found.per_s[ALL], found.per_s[ONE])
    short = spread(found.short_s[LITE_ONE])
    return [
        Aim("images/s through the mesh, of diffusers", "≥ 0.97x", mesh.text("x"), mesh.median >= 0.97),
        Aim(f"{TOGETHER} at once, of one after the other", "≥ 1.3x", batched.text("x"), batched.median >= 1.3),
        Aim(f"an image of {QUICK_STEPS} steps, ONNX Runtime", "< 1 s", short.text(" s"), short.median < 1),
    ]
