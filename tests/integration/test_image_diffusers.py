"""The diffusers engine with the packaged model: what it draws is what diffusers draws, alone or among others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("torch")

from outbid_capabilities.image.diffusers_engine import DiffusersEngine
from outbid_capabilities.image.engine import Facts
from outbid_capabilities.runner_kit import RunError
from tests.integration.test_image_diffusers_support import (
    EMOJI,
    Board,
    apart,
    batches,
    draw,
    load,
    one,
)

pytestmark = pytest.mark.model

SAME = 2
"""Of 255: batches of other sizes add up in another order."""


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusersEngine]:
    loaded = load(EMOJI)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def apple(engine: DiffusersEngine) -> Board:
    return one(engine, seeds=(5,), preview_every=3)


def test_a_picture_is_the_one_that_diffusers_draws_when_called_directly(engine: DiffusersEngine, apple: Board) -> None:
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(EMOJI, dtype=torch.float32, use_safetensors=True)
    with torch.no_grad():
        direct = pipe(
            "red apple",
            num_inference_steps=8,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(5),
            output_type="np",
        ).images[0]
    assert apart(apple.pictures[0], (direct * 255).round().astype(np.uint8)) <= 1


def test_what_was_left_open_is_filled_in_and_told(engine: DiffusersEngine, apple: Board) -> None:
    seconds = apple.facts.seconds
    assert apple.facts == Facts(
        steps=8, width=64, height=64, guidance=4.0, scheduler="ddim", device="cpu", dtype="float32", seconds=seconds
    )
    assert set(apple.measured) == set(engine.rates) == {"mpix_steps", "steps", "mpix", "images"}
    assert apple.measured["images"][0] == 1
    assert apple.measured["mpix_steps"][0] == pytest.approx(64 * 64 * 8 / 1e6)
    assert all(rate > 0 for rate in engine.rates.values())
    assert apple.ends == ["done"]


def test_every_step_is_told_with_the_time_that_is_left(apple: Board) -> None:
    assert [(step, steps) for step, steps, _ in apple.steps] == [(step, 8) for step in range(1, 9)]
    assert apple.steps[-1][2] == 0.0
    assert all(eta is not None and eta > 0 for _, _, eta in apple.steps[:-1])


def test_previews_come_as_often_as_asked_and_end_up_like_the_picture(apple: Board) -> None:
    assert [step for step, _ in apple.previews] == [3, 6]
    last = apple.previews[-1][1][0]
    assert last.shape == (64, 64, 3)
    assert np.abs(last.astype(int) - apple.pictures[0]).mean() < 25


def test_jobs_that_join_at_other_steps_share_batches_and_change_no_picture(
    engine: DiffusersEngine, apple: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = one(engine, prompt="green apple", steps=6, seeds=(6,))
    late = Board(prompt="green apple", steps=6, seeds=(6,))
    seen = batches(engine, monkeypatch)

    def join(board: Board, step: int) -> None:
        if step == 3:
            engine.submit(late)

    early, _ = draw(engine, Board(join, seeds=(5,)), Board(seeds=(7,), scheduler="euler"))
    assert late.over.wait(60)
    assert 3 in seen, "a job of another scheduler, and one at another step, ran in the same pass"
    assert apart(early.pictures[0], apple.pictures[0]) <= SAME
    assert apart(late.pictures[0], alone.pictures[0]) <= SAME


def test_each_of_several_pictures_is_the_one_its_seed_gives(
    engine: DiffusersEngine, apple: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = batches(engine, monkeypatch)
    board = one(engine, seeds=(4, 5, 6), preview_every=4)
    assert set(seen) == {3}
    assert len(board.pictures) == 3
    assert apart(board.pictures[1], apple.pictures[0]) <= SAME
    assert apart(board.pictures[0], board.pictures[1]) > 20
    assert [len(pictures) for _, pictures in board.previews] == [3]
    assert [step for step, _, _ in board.steps] == list(range(1, 9))


def test_a_cancelled_job_stops_within_a_step_and_the_others_go_on(engine: DiffusersEngine, apple: Board) -> None:
    def cancel(board: Board, step: int) -> None:
        board.cancelled = step == 3

    gone, stays = Board(cancel, seeds=(4, 9)), Board(seeds=(5,))
    draw(engine, gone, stays)
    assert gone.ends == ["stopped"]
    assert [step for step, _, _ in gone.steps] == [1, 2, 3]
    assert not gone.saves
    assert apart(stays.pictures[0], apple.pictures[0]) <= SAME


def test_a_job_that_is_to_go_on_elsewhere_gives_a_last_checkpoint(engine: DiffusersEngine, apple: Board) -> None:
    def leave(board: Board, step: int) -> None:
        board.save_wanted = board.cancelled = step == 5

    gone = draw(engine, Board(leave, seeds=(5,)))[0]
    assert [step for step, _ in gone.saves] == [5]
    assert gone.ends == ["stopped"]
    board = one(engine, seeds=(5,), checkpoint=gone.saves[0][1])
    assert board.facts.resumed_at == 5
    assert [step for step, _, _ in board.steps] == [6, 7, 8]
    assert np.array_equal(board.pictures[0], apple.pictures[0])
    assert board.measured["steps"][0] == pytest.approx(3)


def test_an_edit_keeps_more_of_the_picture_the_lower_the_strength(engine: DiffusersEngine, apple: Board) -> None:
    picture = apple.pictures[0]
    same, other = (
        one(engine, kind="edit", image=picture, prompt=prompt, strength=strength, seeds=(1,)).pictures[0]
        for prompt, strength in (("red apple", 0.25), ("cat", 0.9))
    )
    changes = [np.abs(edited.astype(int) - picture).mean() for edited in (same, other)]
    assert changes[0] < 10 < 25 < changes[1]


def test_an_edit_within_a_mask_leaves_the_rest(engine: DiffusersEngine, apple: Board) -> None:
    picture, mask = apple.pictures[0], np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    edited = one(engine, kind="edit", image=picture, mask=mask, prompt="green apple", seeds=(1,)).pictures[0]
    change = np.abs(edited.astype(int) - picture).mean(axis=(0, 2))
    assert change[:24].mean() < change[40:].mean() / 3


def test_a_film_goes_from_one_prompt_to_the_other(engine: DiffusersEngine, apple: Board) -> None:
    film = one(engine, kind="animate", frames=3, loop=False, prompt_to="green apple", seeds=(5,))
    assert len(film.pictures) == 3
    assert apart(film.pictures[0], apple.pictures[0]) <= SAME
    last = one(engine, prompt="green apple", seeds=(6,)).pictures[0]
    assert apart(film.pictures[2], last) <= SAME, "its noise is that of the next seed"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"width": 70}, "multiples of 8"),
        ({"scheduler": "best"}, "take one of: ddim"),
        ({"scheduler": "lcm", "steps": 200}, "refuses this request"),
        ({"kind": "edit", "image": np.zeros((64, 64, 3), np.uint8), "steps": 3, "strength": 0.1}, "less than one step"),
    ],
)
def test_what_the_model_cannot_do_is_refused_in_a_sentence(
    engine: DiffusersEngine, request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(RunError, match=words) as caught:
        one(engine, **request_)
    assert not caught.value.retry
    assert caught.value.code == "invalid_request"


def test_a_lora_that_is_not_here_may_be_elsewhere(engine: DiffusersEngine) -> None:
    with pytest.raises(RunError, match="no LoRA 'ink'") as caught:
        one(engine, loras=(("ink", 1.0),))
    assert caught.value.retry
