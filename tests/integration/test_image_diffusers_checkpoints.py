"""Checkpoints of the diffusers engine: going on from one gives the very picture that would have come without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("torch")

from outbid_capabilities.image.diffusers_engine import DiffusersEngine
from tests.integration.test_image_diffusers_support import Board, draw, load, one, tiny

pytestmark = pytest.mark.model

SCHEDULERS = ("ddim", "ddpm", "dpm++2m", "dpm++2m-karras", "euler", "euler-a", "heun", "lcm", "pndm", "unipc")
PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
MASK = np.pad(np.full((16, 16), 255, np.uint8), 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("sdxl", tmp_path_factory.mktemp("model") / "sdxl")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[DiffusersEngine]:
    loaded = load(folder)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Iterator[DiffusersEngine]:
    """The same model, loaded by another runner."""
    loaded = load(folder)
    yield loaded
    loaded.close()


def goes_on(engine: DiffusersEngine, elsewhere: DiffusersEngine, every: int = 2, **request: Any) -> tuple[Board, Board]:
    """Draws in one go, and again elsewhere from the last checkpoint of that; equal to the last bit."""
    whole = one(engine, checkpoint_every=every, **request)
    step, checkpoint = whole.saves[-1]
    rest = one(elsewhere, checkpoint=checkpoint, **request)
    assert rest.facts.notes == ()
    assert rest.facts.resumed_at == step
    assert rest.steps[0][0] == step + 1
    assert len(rest.steps) == len(whole.steps) - step
    for a, b in zip(whole.pictures, rest.pictures, strict=True):
        assert np.array_equal(a, b)
    return whole, rest


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_resumed_picture_is_equal_to_the_last_bit(
    engine: DiffusersEngine, elsewhere: DiffusersEngine, scheduler: str
) -> None:
    whole, rest = goes_on(engine, elsewhere, scheduler=scheduler, seeds=(3,))
    assert rest.facts.scheduler == whole.facts.scheduler == scheduler
    assert rest.measured["images"][0] < 1


def test_several_pictures_go_on_together(engine: DiffusersEngine, elsewhere: DiffusersEngine) -> None:
    whole, _ = goes_on(engine, elsewhere, scheduler="euler-a", seeds=(3, 4, 9))
    assert len(whole.pictures) == 3


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "mask"])
@pytest.mark.parametrize("scheduler", ["euler-a", "dpm++2m"])
def test_an_edit_goes_on(engine: DiffusersEngine, elsewhere: DiffusersEngine, scheduler: str, mask: Any) -> None:
    request = {"kind": "edit", "image": PICTURE, "mask": mask, "strength": 0.7, "scheduler": scheduler}
    whole, _ = goes_on(engine, elsewhere, **request)
    assert [steps for _, steps, _ in whole.steps] == [4] * 4, "0.7 of 6 steps"


def test_a_film_goes_on(engine: DiffusersEngine, elsewhere: DiffusersEngine) -> None:
    goes_on(engine, elsewhere, kind="animate", frames=5, prompt_to="cat", scheduler="unipc")


def test_a_film_with_more_frames_than_fit_goes_on_with_the_frames_that_are_ready(
    engine: DiffusersEngine, elsewhere: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one_engine in (engine, elsewhere):
        monkeypatch.setattr(one_engine.hub, "max_rows", 4)
    goes_on(engine, elsewhere, every=4, kind="animate", frames=12, steps=6)


def test_without_a_step_to_be_saved_none_is_made(engine: DiffusersEngine) -> None:
    assert not one(engine, checkpoint_every=0).saves
    assert not one(engine).saves, "the canvas says when it is due"


def test_a_checkpoint_of_something_else_is_not_used_and_that_is_said(engine: DiffusersEngine) -> None:
    plain = one(engine, checkpoint_every=2, seeds=(3,))
    checkpoint = plain.saves[-1][1]
    changes: list[dict[str, Any]] = [
        {"seeds": (4,)},
        {"prompt": "cat"},
        {"steps": 7},
        {"scheduler": "ddim"},
        {"width": 64},
    ]
    for change in changes:
        board = one(engine, **{"seeds": (3,)} | change, checkpoint=checkpoint)
        assert board.facts.resumed_at == 0
        assert "another request" in board.facts.notes[0]
        assert np.array_equal(board.pictures[0], one(engine, **{"seeds": (3,)} | change).pictures[0])


def test_a_damaged_checkpoint_costs_the_steps_and_nothing_else(engine: DiffusersEngine) -> None:
    plain = one(engine, checkpoint_every=2, seeds=(3,))
    checkpoint = plain.saves[-1][1]
    rng = np.random.default_rng(1)
    damaged = [b"", b"\x80", checkpoint[:-10], checkpoint + b"x", checkpoint[: len(checkpoint) // 2], b"\xc1" * 100]
    for _ in range(30):
        spoiled = bytearray(checkpoint)
        spoiled[rng.integers(0, 200)] = rng.integers(0, 256)  # where names, shapes and lengths are
        damaged.append(bytes(spoiled))
    boards = draw(engine, *[Board(seeds=(3,), checkpoint=data) for data in damaged])
    for board in boards[:6]:
        assert board.facts.resumed_at == 0
        assert board.facts.notes
    assert all(board.ends == ["done"] for board in boards)


def test_a_checkpoint_with_settings_that_make_no_sense_is_not_used(engine: DiffusersEngine) -> None:
    plain = one(engine, checkpoint_every=2, seeds=(3,), scheduler="dpm++2m")
    found = msgpack.unpackb(plain.saves[-1][1], ext_hook=msgpack.ExtType)
    evils: list[dict[str, Any]] = [
        {"scheduler": {"step": 1}},
        {"scheduler": {"set_timesteps": 1}},
        {"scheduler": {"sigmas": 5}},
        {"scheduler": {"model_outputs": [[]]}},
        {"blanks": {}},
        {"blanks": {"unet": [{"dtype": "load", "shape": [1]}]}},
        {"blanks": {"unet": [{"dtype": "float32", "shape": [-7]}]}},
        {"steps": 10**6},
        {"step": 0},
        {"generator": b"x"},
        {"outputs": []},
    ]
    for evil in evils:
        picture = found["pictures"][0] | evil
        data = msgpack.packb(found | {"pictures": [picture]})
        board = one(engine, seeds=(3,), scheduler="dpm++2m", checkpoint=data)
        assert "no use" in board.facts.notes[0], evil
        assert np.array_equal(board.pictures[0], plain.pictures[0]), evil
