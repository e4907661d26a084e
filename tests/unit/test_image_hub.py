"""The hub that puts calls of a denoiser together, with a model of one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("greenlet")

from outbid_capabilities.image.hub import Call, Denoiser, Hub  # noqa: E402 - they need torch


class Model:
    """Answers sample x timestep + scale, and remembers how many rows each call had. Short of memory above `room`."""

    def __init__(self, room: int = 1000) -> None:
        self.rows: list[int] = []
        self.room = room

    def __call__(
        self, sample: Any, timestep: Any, scale: float = 0.0, ids: Any = None, return_dict: bool = True
    ) -> Any:
        if sample.shape[0] > self.room:
            raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB")
        if sample.isnan().any():
            raise ValueError("no number")
        self.rows.append(sample.shape[0])
        time = timestep if timestep.ndim == 0 else timestep.reshape(-1, 1)
        return (sample * time + scale,)


class Stubborn(Model):
    """Looks at the first sample only: cannot be batched."""

    def __call__(self, sample: Any, timestep: Any) -> Any:  # type: ignore[override]
        return (super().__call__(sample, timestep)[0][:1],)


class Owner:
    def __init__(self, max_rows: int = 100) -> None:
        self.notes: list[str] = []
        self.max_rows = max_rows

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(before)


def hub(max_rows: int = 16, economies: int = 0) -> Hub:
    left = iter(range(economies))
    return Hub(max_rows, lambda scope: None, lambda: next(left, None) is not None)


def start(hub: Hub, model: Model, value: float, time: float, *, rows: int = 1, scope: Any = (), **kwargs: Any) -> Owner:
    """A greenlet that calls the model once and keeps the answer, or the error, in its owner's `answer`."""
    owner = Owner()
    denoiser = Denoiser(model, owner, scope, lambda rows, return_dict: None, lambda rows, answer: None)

    def work() -> str:
        try:
            owner.answer = denoiser(torch.full((rows, 2), value), torch.tensor(time), **kwargs)[0]  # type: ignore[attr-defined]
        except Exception as error:
            owner.answer = error  # type: ignore[attr-defined]
        return "over"

    assert hub.begin(work) is None
    return owner


def turn(hub: Hub) -> list[Call]:
    batch = hub.next_batch()
    for call, answer in zip(batch, hub.answer(batch), strict=True):
        assert hub.resume(call, answer) == "over"
    return batch


def answer(owner: Owner) -> Any:
    found = owner.answer  # type: ignore[attr-defined]
    return found.tolist() if isinstance(found, torch.Tensor) else found


def test_calls_at_different_steps_share_one_pass_and_get_their_own_rows() -> None:
    one, model = hub(), Model()
    owners = [start(one, model, 1.0, 10), start(one, model, 2.0, 20.0, rows=2), start(one, model, 3.0, 30.0)]
    turn(one)
    assert model.rows == [4]
    assert [answer(owner) for owner in owners] == [[[10.0, 10.0]], [[40.0, 40.0]] * 2, [[90.0, 90.0]]]


@pytest.mark.parametrize(
    "other",
    [
        {"scale": 2.0},
        {"scope": (("a", 1.0),)},
        {"ids": torch.ones(5, 3)},
        {"ids": torch.zeros(7, 3)},
    ],
)
def test_calls_that_differ_in_what_they_share_do_not_share_a_pass(other: dict[str, Any]) -> None:
    one, model = hub(), Model()
    start(one, model, 1.0, 1.0, ids=torch.zeros(5, 3))
    start(one, model, 1.0, 1.0, **{"ids": torch.zeros(5, 3)} | other)
    start(one, model, 1.0, 1.0, ids=torch.zeros(5, 3))
    turn(one)
    turn(one)
    assert model.rows == [2, 1]


def test_position_ids_are_shared_even_when_tokens_are_as_many_as_rows() -> None:
    class Flux(Model):
        def __call__(self, sample: Any, timestep: Any, txt_ids: Any = None) -> Any:  # type: ignore[override]
            assert txt_ids.shape == (1, 3)
            return super().__call__(sample, timestep)

    one, model = hub(), Flux()
    owners = [start(one, model, value, 1.0, txt_ids=torch.zeros(1, 3)) for value in (1.0, 2.0)]
    turn(one)
    assert model.rows == [2]
    assert [answer(owner) for owner in owners] == [[[1.0, 1.0]], [[2.0, 2.0]]]


def test_the_call_that_waited_longest_goes_first() -> None:
    one, model = hub(), Model()
    lonely = start(one, model, 1.0, 1.0, scale=9.0)
    for _ in range(5):
        start(one, model, 1.0, 1.0)
    turn(one)
    assert answer(lonely) == [[10.0, 10.0]]
    assert model.rows == [1]


def test_a_batch_is_never_larger_than_allowed() -> None:
    one, model = hub(max_rows=4), Model()
    owners = [start(one, model, 1.0, 1.0, rows=2) for _ in range(3)]
    turn(one)
    turn(one)
    assert model.rows == [4, 2]
    assert all(answer(owner) == [[1.0, 1.0]] * 2 for owner in owners)


def test_a_call_larger_than_allowed_is_answered_in_parts() -> None:
    one, model = hub(max_rows=2), Model()
    owner = start(one, model, 3.0, 2.0, rows=5)
    turn(one)
    assert model.rows == [2, 2, 1]
    assert answer(owner) == [[6.0, 6.0]] * 5


def test_short_of_memory_the_batch_is_halved_and_stays_small() -> None:
    one, model = hub(), Model(room=2)
    owners = [start(one, model, value, 1.0) for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    turn(one)
    assert model.rows == [2, 2, 1]
    assert [answer(owner) for owner in owners] == [[[value, value]] for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert "batches of 2" in owners[0].notes[-1]
    for _ in range(3):
        start(one, model, 1.0, 1.0)
    assert [len(turn(one)), len(turn(one))] == [2, 1]


def test_a_single_sample_that_does_not_fit_asks_for_economies_and_then_fails_alone() -> None:
    one, model = hub(economies=2), Model(room=0)
    small = start(one, model, 1.0, 1.0)
    turn(one)
    assert isinstance(answer(small), torch.OutOfMemoryError)
    assert not one._economise(), "all economies were tried before giving up"


def test_a_bad_call_fails_alone_and_spoils_neither_its_batch_nor_later_ones() -> None:
    one, model = hub(), Model()
    good, bad, fine = (start(one, model, value, 2.0) for value in (1.0, float("nan"), 3.0))
    turn(one)
    assert isinstance(answer(bad), ValueError)
    assert answer(good) == [[2.0, 2.0]]
    assert answer(fine) == [[6.0, 6.0]]
    start(one, model, 1.0, 1.0)
    start(one, model, 1.0, 1.0)
    assert len(turn(one)) == 2


def test_a_model_that_cannot_be_batched_answers_one_by_one_from_then_on() -> None:
    one, model = hub(), Stubborn()
    owners = [start(one, model, value, 1.0) for value in (1.0, 2.0)]
    turn(one)
    assert [answer(owner) for owner in owners] == [[[1.0, 1.0]], [[2.0, 2.0]]]
    start(one, model, 1.0, 1.0)
    start(one, model, 1.0, 1.0)
    assert len(turn(one)) == 1


def test_a_dropped_owner_sees_the_error_and_the_others_go_on() -> None:
    one, model = hub(), Model()
    gone, stays = start(one, model, 1.0, 1.0), start(one, model, 2.0, 1.0)
    one.drop(gone, RuntimeError("gone"))
    assert isinstance(answer(gone), RuntimeError)
    turn(one)
    assert answer(stays) == [[2.0, 2.0]]


def test_gradients_stay_off_whatever_a_greenlet_left_on() -> None:
    one, model = hub(), Model()

    def work() -> str:
        with torch.enable_grad():
            Denoiser(model, Owner(), (), lambda rows, return_dict: None, lambda rows, answer: None)(
                torch.ones(1, 2), torch.tensor(1.0)
            )
        return "over"

    assert one.begin(work) is None
    assert not torch.is_grad_enabled()
    turn(one)
    assert not torch.is_grad_enabled()
