"""`images`: pictures through the mesh beside diffusers called directly; four at once; the first preview."""

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
from outbid_bench.plots import Bars
from outbid_bench.processes import Helper
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import ratios, spread
from outbid_contracts.events import Chunk
from outbid_contracts.images import GENERATE

MODEL = Path("image", "emoji")
STEPS, GUIDANCE = 20, 4.0
QUICK_STEPS = 8
PREVIEW_EVERY = 2
TOGETHER = 4
WORDS = ("red apple", "cat face", "blue heart", "rocket", "penguin", "pizza", "rainbow", "house")

Jobs = Sequence[tuple[str, int]]
"""Prompts and seeds."""

Draw = Callable[[Jobs, int], Awaitable[float]]
"""Draws them in so many steps and gives the seconds that took."""

Preview = Callable[[int], Awaitable[float]]
"""Draws with this seed and gives the seconds until the first preview was there."""

DIRECT, DIRECT_BATCH = "diffusers, called directly", f"diffusers, called directly, batches of {TOGETHER}"
ONE, ALL = "Outbid, one after the other", f"Outbid, {TOGETHER} at once"
LITE_ONE, LITE_ALL = "Outbid on ONNX Runtime, one after the other", f"Outbid on ONNX Runtime, {TOGETHER} at once"


@dataclass(slots=True)
class Found:
    """Images per second, and seconds of a single short one; per contender one number for each round."""

    per_s: dict[str, list[float]] = field(default_factory=dict)
    short_s: dict[str, list[float]] = field(default_factory=dict)
    preview_s: dict[str, list[float]] = field(default_factory=dict)


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
        previews: dict[str, Preview] = {
            DIRECT: lambda seed: _first_preview_directly_s(direct, seed),
            ONE: lambda seed: _first_preview_s(torch, seed),
            LITE_ONE: lambda seed: _first_preview_s(lite, seed),
        }
        found = await _measure(contenders, previews, options)
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
    """As from several people."""

    async def draw(jobs: Jobs, steps: int) -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(mesh.run(GENERATE, _params(prompt, seed, steps)) for prompt, seed in jobs))
        return time.perf_counter() - begun

    return draw


def _params(prompt: str, seed: int, steps: int) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "steps": steps, "guidance": GUIDANCE, "width": 64, "height": 64}


async def _first_preview_s(mesh: Mesh, seed: int) -> float:
    begun = time.perf_counter()
    params = _params(WORDS[0], seed, STEPS) | {"preview_every": PREVIEW_EVERY}
    async with aclosing(mesh.stream(GENERATE, params)) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Chunk):
                return time.perf_counter() - begun  # the rest of the drawing is called off
    raise RuntimeError("a drawing without a preview")


async def _first_preview_directly_s(helper: Helper, seed: int) -> float:
    batches = [[(WORDS[0], seed)]]
    answer = await helper.ask(batches=batches, steps=STEPS, guidance=GUIDANCE, preview_every=PREVIEW_EVERY)
    return float(answer["shown_s"][0])


# -- the measurements --------------------------------------------------------------------------------------------------


async def _measure(contenders: dict[str, Draw], previews: dict[str, Preview], options: Options) -> Found:
    found = Found()
    for draw in contenders.values():
        await draw([(WORDS[0], 0)] * TOGETHER, QUICK_STEPS)  # loads the model, warms the batch
    for round in range(options.rounds):
        options.say(f"images: round {round + 1} of {options.rounds}")
        jobs = [(WORDS[n % len(WORDS)], 1000 * round + n) for n in range(TOGETHER)]
        for name, draw in contenders.items():
            found.per_s.setdefault(name, []).append(TOGETHER / await draw(jobs, STEPS))
        for name in (DIRECT, ONE, LITE_ONE):
            found.short_s.setdefault(name, []).append(await contenders[name]([(WORDS[1], round)], QUICK_STEPS))
        for name, preview in previews.items():
            found.preview_s.setdefault(name, []).append(await preview(round))
    return found


# -- what is said about it ---------------------------------------------------------------------------------------------


def _section(found: Found, threads: int) -> Section:
    section = Section(
        "images",
        "Images: a diffusion model through the mesh",
        f"The packaged emoji model, 64 x 64, {STEPS} steps, guidance {GUIDANCE:g}, {threads} thread"
        f"{'s' if threads > 1 else ''} for every contender, warm. Through the mesh: SDK, auction, runner process, PNG "
        "with metadata, artifact on disk (synced).",
    )
    section.tables, section.aims = [_table(found), _preview_table(found)], _aims(found)
    section.plots = [Bars("rate", "Images per second", "images/s", [(n, spread(s)) for n, s in found.per_s.items()])]
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
        f"{TOGETHER} pictures of {STEPS} steps from each in each round. diffusers called directly writes no file; its "
        "batch is there from the start, while the mesh puts together what comes.",
    )
    return Table("Images per second", ("what", "images/s", "of diffusers", f"one of {QUICK_STEPS} steps"), rows, notes)


def _preview_table(found: Found) -> Table:
    direct = found.preview_s[DIRECT]
    rows = [
        (name, spread(seconds).scaled(1000).text(" ms", 0), ratios(seconds, direct).text("x"))
        for name, seconds in found.preview_s.items()
    ]
    notes = (
        f"Since the call, one every {PREVIEW_EVERY} steps of {STEPS}. Directly: `callback_on_step_end`, decoded by the "
        "pipeline's own VAE to a JPEG in that process; through the mesh: a JPEG at the caller.",
    )
    return Table("The first preview", ("what", "after", "of diffusers"), rows, notes)


def _aims(found: Found) -> list[Aim]:
    mesh = ratios(found.per_s[ONE], found.per_s[DIRECT])
    batched = ratios(found.per_s[ALL], found.per_s[ONE])
    short = spread(found.short_s[LITE_ONE])
    return [
        Aim("images/s through the mesh, of diffusers", "≥ 0.97x", mesh.text("x"), mesh.median >= 0.97),
        Aim(f"{TOGETHER} at once, of one after the other", "≥ 1.3x", batched.text("x"), batched.median >= 1.3),
        Aim(f"an image of {QUICK_STEPS} steps, ONNX Runtime", "< 1 s", short.text(" s"), short.median < 1),
    ]
