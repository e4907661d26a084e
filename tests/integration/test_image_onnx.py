"""The packaged emoji model on ONNX Runtime, without torch: real weights, real passes."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

import numpy as np
from PIL import Image

from outbid_capabilities import image
from outbid_capabilities.image.engine import EngineOptions, Facts, Request, units
from outbid_capabilities.image.onnx_engine import OnnxEngine
from outbid_capabilities.runner_kit import RunError

pytestmark = pytest.mark.model

EMOJI = Path(image.__file__).parent / "emoji"
REFERENCES = Path(__file__).resolve().parents[1] / "data" / "image_references"
CASES: list[dict[str, Any]] = json.loads((REFERENCES / "cases.json").read_text(encoding="utf-8"))
SIDE = 64
APPLE = Request(kind="generate", prompt="red apple", seeds=(7,), preview_every=0, checkpoint_every=0)

Picture = Any


class Easel:
    """A canvas that keeps all it gets. `at_step` is called after each step, in the engine's thread."""

    def __init__(self, request: Request, at_step: Callable[[Easel], None] = lambda easel: None) -> None:
        self.request = request
        self.cancelled = self.save_wanted = False
        self.preview_due = self.checkpoint_due = False
        self.steps: list[tuple[int, int, float | None]] = []
        self.previews: list[tuple[int, int, Sequence[Picture]]] = []
        self.checkpoints: list[tuple[int, int, bytes]] = []
        self.pictures: Sequence[Picture] = ()
        self.facts: Facts | None = None
        self.measured: Mapping[str, tuple[float, float]] = {}
        self.error: BaseException | None = None
        self.ends: list[str] = []
        self.over = threading.Event()
        self._at_step = at_step

    def stepped(self, step: int, steps: int, eta_s: float | None) -> None:
        self.steps.append((step, steps, eta_s))
        self._at_step(self)

    def preview(self, step: int, steps: int, pictures: Sequence[Picture]) -> None:
        self.previews.append((step, steps, pictures))

    def saved(self, step: int, steps: int, checkpoint: bytes) -> None:
        self.checkpoints.append((step, steps, checkpoint))

    def done(self, pictures: Sequence[Picture], facts: Facts, measured: Mapping[str, tuple[float, float]]) -> None:
        self.pictures, self.facts, self.measured = pictures, facts, measured
        self._end("done")

    def failed(self, error: BaseException) -> None:
        self.error = error
        self._end("failed")

    def stopped(self) -> None:
        self._end("stopped")

    def _end(self, how: str) -> None:
        self.ends.append(how)
        self.over.set()

    def wait(self) -> Easel:
        assert self.over.wait(60)
        return self


@pytest.fixture(scope="module")
def engine() -> Iterator[OnnxEngine]:
    engine = OnnxEngine(EngineOptions(path=str(EMOJI), threads=2), lambda fraction, note: None)
    yield engine
    engine.close()


def begin(engine: OnnxEngine, request: Request, at_step: Callable[[Easel], None] = lambda easel: None) -> Easel:
    easel = Easel(request, at_step)
    engine.submit(easel)
    return easel


def draw(engine: OnnxEngine, request: Request) -> Easel:
    easel = begin(engine, request).wait()
    assert easel.ends == ["done"], easel.error
    return easel


def far(one: Picture, other: Picture) -> int:
    """The largest difference of a colour value, of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def _references() -> list[Picture]:
    strip = np.asarray(Image.open(REFERENCES / "pictures.png"))
    return np.split(strip, len(CASES), axis=1)


def _request(case: dict[str, Any]) -> Request:
    edited = {"image": np.ascontiguousarray(_references()[0])} if "strength" in case else {}
    if "mask" in case:
        edited["mask"] = np.repeat([[0, 255]], SIDE // 2, axis=1).repeat(SIDE, axis=0).astype(np.uint8)
    return Request(
        kind="edit" if edited else "generate",
        prompt=case["prompt"],
        negative_prompt=case.get("negative_prompt", ""),
        steps=case["steps"],
        guidance=case["guidance"],
        seeds=(case["seed"],),
        scheduler=case["scheduler"],
        strength=case.get("strength"),
        **edited,  # type: ignore[arg-type]
    )


# -- what it draws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda n: f"{CASES[n]['prompt'][:12]} {CASES[n]['scheduler']}"
)
def test_it_draws_what_diffusers_draws(engine: OnnxEngine, number: int) -> None:
    """tools/emoji/references.py made the references, with torch."""
    picture = draw(engine, _request(CASES[number])).pictures[0]

    assert picture.shape == (SIDE, SIDE, 3)
    assert far(picture, _references()[number]) <= 3


def test_what_is_left_open_is_the_models_own(engine: OnnxEngine) -> None:
    done = draw(engine, APPLE)

    assert done.facts is not None
    assert done.facts == Facts(
        steps=8,
        width=64,
        height=64,
        guidance=4.0,
        scheduler="ddim",
        device="cpu",
        dtype="float32",
        seconds=done.facts.seconds,
    )
    assert done.measured == {unit: (count, done.facts.seconds) for unit, count in units(8, 64, 64, 1).items()}


def test_the_same_request_gives_the_same_picture(engine: OnnxEngine) -> None:
    first, second = (draw(engine, replace(APPLE, scheduler="euler-a")).pictures[0] for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_several_seeds_give_the_pictures_that_each_gives_alone(engine: OnnxEngine) -> None:
    """With noise drawn in the steps, too."""
    request = replace(APPLE, scheduler="euler-a", seeds=(3, 4, 5))
    together = draw(engine, request).pictures

    for seed, picture in zip(request.seeds, together, strict=True):
        assert far(picture, draw(engine, replace(request, seeds=(seed,))).pictures[0]) <= 1


def test_jobs_drawn_together_come_out_as_alone_whenever_they_join(engine: OnnxEngine) -> None:
    requests = [
        replace(APPLE, steps=12),
        replace(APPLE, prompt="cat face", guidance=1.0, scheduler="dpm++2m", seeds=(1, 2, 3)),
        replace(APPLE, prompt="penguin", guidance=7.0, steps=5, negative_prompt="blue"),
        replace(APPLE, width=72, height=48),
    ]
    alone = [draw(engine, request).pictures for request in requests]
    late: list[Easel] = []

    def join(first: Easel) -> None:
        if len(first.steps) == 4:
            late.extend(begin(engine, request) for request in requests[1:])

    first = begin(engine, requests[0], join).wait()
    jobs = [first, *(easel.wait() for easel in late)]

    assert [easel.ends for easel in jobs] == [["done"]] * 4
    for easel, wanted in zip(jobs, alone, strict=True):
        assert max(far(one, other) for one, other in zip(easel.pictures, wanted, strict=True)) <= 1


@pytest.mark.parametrize(("width", "height"), [(8, 8), (24, 40), (128, 72)])
def test_other_sizes_are_drawn_and_remarked_on(engine: OnnxEngine, width: int, height: int) -> None:
    done = draw(engine, replace(APPLE, width=width, height=height, steps=2))

    assert done.pictures[0].shape == (height, width, 3)
    assert done.facts is not None
    assert "trained on pictures of 64x64" in done.facts.notes[0]


def test_a_prompt_too_long_for_the_model_is_cut_and_remarked_on(engine: OnnxEngine) -> None:
    done = draw(engine, replace(APPLE, prompt="apple " * 10_000, steps=1))

    assert done.facts is not None
    assert "18 pieces of words" in done.facts.notes[0]


def test_an_edit_with_a_mask_leaves_the_rest_as_it_was(engine: OnnxEngine) -> None:
    masked = _request(next(case for case in CASES if "mask" in case))
    kept = slice(0, SIDE // 2 - 8)  # clear of the edge that the VAE blurs
    before = draw(engine, replace(masked, mask=np.zeros_like(masked.mask))).pictures[0]

    after = draw(engine, masked).pictures[0]

    assert far(after[:, kept], before[:, kept]) <= 10
    assert far(after, before) > 100


def test_an_edit_does_the_steps_its_strength_leaves(engine: OnnxEngine) -> None:
    request = replace(APPLE, kind="edit", image=np.ascontiguousarray(_references()[0]), strength=0.5)

    half, least = draw(engine, request), draw(engine, replace(request, strength=0.01))

    assert [step[:2] for step in half.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [step[:2] for step in least.steps] == [(1, 1)]
    assert half.measured["steps"][0] == 4


def test_a_film_leads_from_one_prompt_to_the_other(engine: OnnxEngine) -> None:
    film = replace(APPLE, kind="animate", prompt_to="green apple", frames=3, loop=False, scheduler="dpm++2m")

    frames = draw(engine, film).pictures

    assert len(frames) == 3
    assert far(frames[0], draw(engine, replace(APPLE, scheduler="dpm++2m")).pictures[0]) <= 1
    last = replace(APPLE, prompt="green apple", seeds=(8,), scheduler="dpm++2m")
    assert far(frames[2], draw(engine, last).pictures[0]) <= 1


def test_a_film_that_loops_goes_round(engine: OnnxEngine) -> None:
    film = replace(APPLE, kind="animate", prompt="grinning face", frames=8, steps=4)
    frames = draw(engine, film).pictures

    jumps = [float(np.abs(frames[n].astype(int) - frames[n - 1].astype(int)).mean()) for n in range(8)]
    assert jumps[0] <= 2 * max(jumps[1:])
    assert min(jumps) > 0


# -- on the way --------------------------------------------------------------------------------------------------------


def test_each_step_is_told_and_previews_come_as_asked(engine: OnnxEngine) -> None:
    done = draw(engine, replace(APPLE, preview_every=3, seeds=tuple(range(6))))

    assert [step[:2] for step in done.steps] == [(n, 8) for n in range(1, 9)]
    etas = [step[2] for step in done.steps]
    assert None not in etas
    assert etas[-1] == 0
    assert [(step, steps, len(pictures)) for step, steps, pictures in done.previews] == [(3, 8, 4), (6, 8, 4)]
    assert done.previews[0][2][0].shape == (SIDE, SIDE, 3)


def test_without_a_number_previews_and_checkpoints_come_when_they_are_due(engine: OnnxEngine) -> None:
    def due(easel: Easel) -> None:
        easel.preview_due = easel.checkpoint_due = len(easel.steps) == 5

    done = begin(engine, replace(APPLE, preview_every=None, checkpoint_every=None), due).wait()

    assert [preview[0] for preview in done.previews] == [5]
    assert [checkpoint[0] for checkpoint in done.checkpoints] == [5]


def test_a_cancelled_job_does_no_further_step_and_leaves_the_others_alone(engine: OnnxEngine) -> None:
    def cancel(easel: Easel) -> None:
        easel.cancelled = len(easel.steps) == 3

    other = begin(engine, APPLE)
    job = begin(engine, replace(APPLE, steps=500), cancel).wait()

    assert (job.ends, len(job.steps)) == (["stopped"], 3)
    assert other.wait().ends == ["done"]


def test_a_job_cancelled_before_it_began_does_nothing(engine: OnnxEngine) -> None:
    easel = Easel(APPLE)
    easel.cancelled = True
    engine.submit(easel)

    assert (easel.wait().ends, easel.steps) == (["stopped"], [])


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "euler", "euler-a"])
def test_a_job_handed_over_goes_on_to_the_very_same_picture(engine: OnnxEngine, scheduler: str) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, 20:] = 255
    picture = np.ascontiguousarray(_references()[0])
    request = replace(
        APPLE, kind="edit", prompt="cat face", image=picture, mask=mask, steps=10, strength=0.9, scheduler=scheduler
    )
    whole = draw(engine, request)

    def hand_over(easel: Easel) -> None:
        easel.save_wanted = easel.cancelled = len(easel.steps) == 4

    first = begin(engine, request, hand_over).wait()
    [(step, steps, checkpoint)] = first.checkpoints
    second = draw(engine, replace(request, checkpoint=checkpoint))

    assert (first.ends, step, steps) == (["stopped"], 4, 9)
    assert [told[:2] for told in second.steps] == [(n, 9) for n in range(5, 10)]
    assert second.facts is not None
    assert second.facts.resumed_at == 4
    assert second.measured["steps"][0] == pytest.approx(5)
    np.testing.assert_array_equal(second.pictures[0], whole.pictures[0])


@pytest.mark.parametrize("damage", [lambda data: b"nonsense", lambda data: data[:-9], lambda data: b""])
def test_a_checkpoint_it_cannot_use_is_said_and_not_used(engine: OnnxEngine, damage: Callable[[bytes], bytes]) -> None:
    checkpoint = draw(engine, replace(APPLE, checkpoint_every=3)).checkpoints[0][2]

    done = draw(engine, replace(APPLE, checkpoint=damage(checkpoint)))
    other = draw(engine, replace(APPLE, prompt="cat face", checkpoint=checkpoint))

    assert done.facts is not None
    assert other.facts is not None
    for facts in (done.facts, other.facts):
        assert facts.resumed_at == 0
        assert "from the beginning" in facts.notes[0]
    np.testing.assert_array_equal(done.pictures[0], draw(engine, APPLE).pictures[0])


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 60}, "multiples of 8"),
        ({"height": 0}, None),
        ({"height": 520}, "up to 512"),
        ({"steps": 1001}, "1 to 1000"),
        ({"guidance": float("nan")}, "not a number"),
        ({"guidance": float("inf")}, "not a number"),
        ({"scheduler": "dpm++2m-karras"}, "ddim"),
        ({"kind": "edit"}, "no picture"),
        ({"kind": "edit", "image": np.zeros((8, 8, 3), np.uint8)}, "not (64, 64, 3)"),
        ({"kind": "edit", "image": np.zeros((64, 64, 3), np.uint8), "mask": np.zeros((8, 64), np.uint8)}, "the mask"),
        ({"kind": "animate", "frames": 0}, "at least one"),
    ],
    ids=str,
)
def test_a_bad_request_fails_by_itself(engine: OnnxEngine, change: dict[str, Any], words: str | None) -> None:
    easel = begin(engine, replace(APPLE, **change)).wait()

    if words is None:  # 0 is "left open"
        assert easel.ends == ["done"]
        return
    assert easel.ends == ["failed"]
    assert isinstance(easel.error, RunError)
    assert words in easel.error.message
    assert (easel.error.code, easel.error.retry) == ("invalid_request", False)
    assert draw(engine, replace(APPLE, steps=1)).pictures


def test_a_lora_is_left_to_another_node(engine: OnnxEngine) -> None:
    easel = begin(engine, replace(APPLE, loras=(("style", 1.0),))).wait()

    assert isinstance(easel.error, RunError)
    assert easel.error.retry


def test_numbers_that_overflow_are_an_error_and_no_picture(engine: OnnxEngine) -> None:
    easel = begin(engine, replace(APPLE, guidance=3e38)).wait()

    assert isinstance(easel.error, RunError)
    assert "lower guidance" in easel.error.message


# -- the engine itself -------------------------------------------------------------------------------------------------


def test_it_measures_all_four_units(engine: OnnxEngine) -> None:
    assert engine.rates.keys() == units(8, 64, 64, 1).keys()
    assert min(engine.rates.values()) > 0
    assert engine.rates["images"] == pytest.approx(8 * engine.rates["steps"])


def test_a_closed_engine_lets_go_of_its_model() -> None:
    engine = OnnxEngine(EngineOptions(path=str(EMOJI), threads=1, slots=3), lambda fraction, note: None)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "onnx" and _of(thread) is engine]

    engine.close()
    thread.join(30)

    assert (engine.slots, thread.is_alive()) == (3, False)
    gc.collect()


def _of(thread: threading.Thread) -> Any:
    return getattr(getattr(thread, "_target", None), "__self__", None)


def test_drawing_loads_no_torch() -> None:
    program = f"""
import sys, threading
from outbid_capabilities.image.engine import EngineOptions
from outbid_capabilities.image.onnx_engine import OnnxEngine
OnnxEngine(EngineOptions(path={str(EMOJI)!r}, threads=1), lambda fraction, note: None)  # draws, to warm up
print(*sorted({{"torch", "diffusers", "transformers", "scipy", "msgspec", "outbid_contracts"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)

    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "onnx/unet.onnx", "outbid.json"])
def test_a_broken_file_is_a_sentence(tmp_path: Path, file: str) -> None:
    for path in EMOJI.rglob("*"):
        there = tmp_path / path.relative_to(EMOJI)
        if path.is_file():
            there.parent.mkdir(exist_ok=True)
            there.symlink_to(path)
    cut = (EMOJI / file).read_bytes()[:-100]
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes(cut)

    with pytest.raises(RunError, match="cannot be loaded") as caught:
        OnnxEngine(EngineOptions(path=str(tmp_path), threads=1), lambda fraction, note: None)
    assert caught.value.code == "runner_unavailable"
