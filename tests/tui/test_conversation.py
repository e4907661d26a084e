"""A conversation as it goes, from events alone; and how a turn of it looks."""

from __future__ import annotations

import doctest

import pytest
from textual.app import App, ComposeResult

from outbid.chat import Reply
from outbid_contracts.errors import AttemptFailed, Draining, OutbidError
from outbid_contracts.events import AttemptLost, Awarded, JobEvent, Loading, Waiting
from outbid_contracts.ids import JobId, NodeId
from outbid_contracts.llm import Usage
from outbid_tui.chat import conversation
from outbid_tui.chat.conversation import Turn, as_markdown, facts, messages
from outbid_tui.chat.widgets import Exchange

JOB = JobId("j1")
NAMES = {NodeId("n-pi"): "pi", NodeId("n-laptop"): "laptop"}


def name_of(node: NodeId) -> str:
    return NAMES[node]


def award(name: str, attempt: int, chunks: int = 0) -> Awarded:
    node = NodeId(f"n-{name}")
    return Awarded(job=JOB, node=node, name=name, attempt=attempt, promised_s=2.0, chunks=chunks, why=f"{name} is best")


def loss(name: str, error: type[OutbidError] = AttemptFailed) -> AttemptLost:
    return AttemptLost(job=JOB, node=NodeId(f"n-{name}"), attempt=1, error=error("gone").body(), retry=True)


def reply(text: str, finish_reason: str = "stop") -> Reply:
    usage = Usage(prompt_tokens=5, completion_tokens=12)
    timings = {"tokens_per_s": 40.0}
    return Reply(
        job=JOB,
        node=NodeId("n-laptop"),
        name="laptop",
        text=text,
        model="smol",
        finish_reason=finish_reason,
        usage=usage,
        timings=timings,
    )


def heard(*events: JobEvent) -> Turn:
    turn = Turn("why?", asked_s=100.0)
    for event in events:
        turn.heard(event, name_of)
    return turn


def done(question: str, text: str) -> Turn:
    turn = Turn(question, asked_s=100.0)
    turn.came(1, 100.5)
    turn.ended(reply(text), 101.0)
    return turn


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "asking the mesh for bids … 3 s"),
        ([Waiting(job=JOB, reason="all slots are taken")], "waiting for a free machine: all slots are taken … 3 s"),
        ([award("pi", 1)], "pi begins … 3 s"),
        (
            [award("pi", 1), Loading(job=JOB, node=NodeId("n-pi"), model="smol", fraction=0.5)],
            "pi loads smol, 50% … 3 s",
        ),
        ([award("pi", 1), loss("pi")], "pi was lost; another machine is looked for … 3 s"),
        ([award("pi", 1), loss("pi", Draining)], "pi drains; another machine is looked for … 3 s"),
    ],
)
def test_until_the_first_piece_comes_words_say_what_goes_on(events: list[JobEvent], said: str) -> None:
    assert facts(heard(*events), 103.0) == said


def test_a_handover_is_told_with_the_pieces_that_were_kept() -> None:
    turn = heard(award("pi", 1), loss("pi"), award("laptop", 2, chunks=42))
    assert turn.happened == ["pi was lost; laptop goes on after 42 pieces"]
    assert (turn.node, turn.why, turn.lost) == ("laptop", "laptop is best", "")


def test_an_answer_that_begins_again_says_so() -> None:
    assert heard(award("pi", 1), loss("pi"), award("laptop", 2)).happened == ["pi was lost; laptop begins again"]
    assert heard(award("pi", 1), loss("pi", Draining), award("laptop", 2, chunks=3)).happened == [
        "pi drains; laptop goes on after 3 pieces"
    ]
    assert heard(award("pi", 1), award("laptop", 2, chunks=3)).happened == ["laptop goes on after 3 pieces"]
    assert heard(award("pi", 1), loss("pi"), award("pi", 2, chunks=3)).happened == [
        "pi lost the answer and goes on after 3 pieces"
    ]


def test_speed_is_as_it_comes_until_the_node_tells() -> None:
    turn = heard(award("laptop", 1))
    turn.came(1, 100.5)
    turn.came(20, 101.5)
    assert facts(turn, 102.5) == "laptop · 10 tok/s · first token 0.50 s · 21 tokens"
    turn.ended(reply("so", "length"), 103.0)
    assert facts(turn, 200.0) == (
        "laptop · smol · 40 tok/s · first token 0.50 s · 12 tokens · cut at the most it may have"
    )


def test_the_model_sees_what_was_answered_and_not_what_failed() -> None:
    failed, stopped, silent = done("b", "broken off"), done("c", "half"), done("d", "")
    failed.failed("no room", 101.0)
    stopped.stopped(101.0)
    silent.stopped(101.0)
    assert messages([done("a", "A"), failed, stopped, silent], " be brief ", "next") == [
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "half"},
        {"role": "user", "content": "next"},
    ]


def test_a_saved_conversation_has_everything_that_was_said() -> None:
    failed = Turn("two\nlines", asked_s=100.0)
    failed.failed("No node has that model.", 101.0)
    text = as_markdown([done("why?", "Because."), failed], "be brief", 101.0)
    for said in (
        "> be brief",
        "## why?\n",
        "Because.",
        "## two\n",
        "two\nlines",
        "*No node has that model.*",
        "laptop",
    ):
        assert said in text


def test_doctests() -> None:
    assert doctest.testmod(conversation).failed == 0


class _Turns(App[None]):
    def compose(self) -> ComposeResult:
        handed_over = heard(award("pi", 1), loss("pi"), award("laptop", 2, chunks=42))
        handed_over.came(1, 100.4)
        handed_over.ended(reply("Light is scattered:\n\n1. blue *more*,\n2. red **less**.\n"), 103.0)
        failed = Turn("and at night?", asked_s=100.0)
        failed.failed("No node of this mesh has the model gpt-9; `outbid models` shows which there are.", 101.0)
        yield Exchange(handed_over)
        yield Exchange(failed)

    async def on_mount(self) -> None:
        exchange = self.query(Exchange).first()
        await exchange.say("Light is scattered:\n\n1. blue *more*,\n2. ")
        await exchange.say("red **less**.\n")
        await exchange.finish()


def test_a_turn_shows_question_answer_handover_and_facts(snap_compare: object) -> None:
    assert callable(snap_compare)
    assert snap_compare(_Turns(), terminal_size=(80, 20))
