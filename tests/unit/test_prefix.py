"""What nodes know of each other's caches: only a common beginning counts, and nobody else can tell what was said."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_capabilities.llm import chat
from outbid_capabilities.testing import noop
from outbid_contracts.capability import Reading
from outbid_contracts.ids import BidId, JobId, NodeId
from outbid_contracts.llm import ChatMessage, ChatParams
from outbid_contracts.messages import Bid, Offer, Work
from outbid_contracts.policy import Policy
from outbid_contracts.runner import Kept
from outbid_node.bidding import make_bid, with_held
from outbid_node.choosing import Want
from outbid_node.estimate import less
from outbid_node.places import Place
from outbid_node.prefix import HELD, REMEMBERED, SENT, SIZE, Holders, PrefixCache, Prefixes, work_done
from outbid_node.ranking import explain, rank

MESH = Prefixes(b"the secret of a mesh")
SAYINGS = st.lists(st.sampled_from(["", "a", "b", "ab", "longer"]), min_size=1, max_size=6)


def asked(*said: str, system: str = "Be brief.", seed: int | None = None) -> ChatParams:
    """A system prompt, and then by turns what the user and the assistant said."""
    roles = ("user", "assistant")
    turns = [ChatMessage(role=roles[n % 2], content=text) for n, text in enumerate(said)]  # type: ignore[arg-type]
    return ChatParams(messages=(ChatMessage(role="system", content=system), *turns), seed=seed)


def cache_after(params: ChatParams, answer: str, slot: int = 0) -> PrefixCache:
    """Of a runner that answered so."""
    cache = PrefixCache(2)
    cache.note(Kept(slot=slot), MESH.read(chat, msgspec.to_builtins(params), {"text": answer}))
    return cache


def held(cache: PrefixCache, params: ChatParams, prefixes: Prefixes = MESH) -> float:
    return cache.held(prefixes.of(chat, params)).get("prompt_tokens", 0.0)


def tokens(params: ChatParams) -> float:
    work: Work = chat.work(params)
    return work["prompt_tokens"]


# -- what is held ------------------------------------------------------------------------------------------------------


def test_the_next_turn_of_a_conversation_is_held_but_for_what_is_new() -> None:
    cache = cache_after(asked("Hello?"), "Hi!")
    assert held(cache, asked("Hello?", "Hi!", "And now?")) == pytest.approx(tokens(asked("Hello?", "Hi!")))


def test_the_same_question_again_is_held_as_a_whole() -> None:
    assert held(cache_after(asked("Hello?"), "Hi!"), asked("Hello?")) == pytest.approx(tokens(asked("Hello?")))


def test_an_answer_that_is_to_be_continued_is_held_with_what_was_added() -> None:
    cache = cache_after(asked("Count.", "one, "), "two")
    assert held(cache, asked("Count.", "one, two", "On!")) == pytest.approx(tokens(asked("Count.", "one, two")))


@pytest.mark.parametrize(
    ("params", "common"),
    [
        (asked("Hello?", "Hi!", "Forked here."), asked("Hello?", "Hi!")),
        (asked("Hello?", "An edited answer.", "And now?"), asked("Hello?")),
        (asked("An edited question?", "Hi!", "And now?"), asked()),
        (asked("Hello?", "Hi!", "And now?", system="Be long."), None),
    ],
)
def test_of_forks_and_edits_only_the_common_beginning_is_held(params: ChatParams, common: ChatParams | None) -> None:
    cache = cache_after(asked("Hello?", "Hi!", "And now?"), "Now this.")
    assert held(cache, params) == pytest.approx(tokens(common) if common is not None else 0.0)


@given(SAYINGS, SAYINGS)
def test_what_is_held_is_just_the_messages_that_both_begin_with(mine: list[str], other: list[str]) -> None:
    common = 0
    while common < min(len(mine), len(other)) and mine[common] == other[common]:
        common += 1
    cache = PrefixCache(1)
    cache.note(Kept(slot=0), MESH.read(chat, msgspec.to_builtins(asked(*mine)), None))
    assert held(cache, asked(*other)) == pytest.approx(tokens(asked(*other[:common])))


def test_where_one_piece_ends_and_the_next_begins_counts() -> None:
    one, two = (Reading(unit="u", pieces=[(text, 1.0) for text in pieces]) for pieces in (("ab", "c"), ("a", "bc")))
    assert not MESH.chain("x", one).amounts.keys() & MESH.chain("x", two).amounts.keys()


def test_two_capabilities_have_nothing_in_common_though_they_share_a_runner() -> None:
    reading = Reading(unit="u", pieces=[("a", 1.0)])
    assert not MESH.chain("llm.chat", reading).amounts.keys() & MESH.chain("llm.complete", reading).amounts.keys()


def test_a_job_with_a_seed_reads_all_anew_but_leaves_what_it_read_to_the_next() -> None:
    cache = cache_after(asked("Hello?", seed=1), "Hi!")
    assert MESH.of(chat, asked("Hello?", "Hi!", "And now?", seed=1)) == b""
    assert held(cache, asked("Hello?", "Hi!", "And now?")) > 0


def test_a_slot_holds_what_was_read_there_last() -> None:
    cache = cache_after(asked("Hello?"), "Hi!", slot=1)
    cache.note(Kept(slot=1), MESH.read(chat, msgspec.to_builtins(asked("Other?", system="Else.")), {"text": "Yes."}))
    assert held(cache, asked("Hello?", "Hi!", "And now?")) == 0
    assert held(cache, asked("Other?", "Yes.", "And now?", system="Else.")) > 0


def test_what_was_read_in_part_is_not_held_and_what_was_there_is_gone() -> None:
    cache = cache_after(asked("Hello?"), "Hi!")
    cache.note(Kept(slot=0, whole=False), MESH.read(chat, msgspec.to_builtins(asked("Hello?")), None))
    assert held(cache, asked("Hello?")) == 0


@pytest.mark.parametrize("slot", [-1, 2, 10**9])
def test_a_slot_that_a_runner_does_not_have_is_ignored(slot: int) -> None:
    assert held(cache_after(asked("Hello?"), "Hi!", slot=slot), asked("Hello?")) == 0


# -- on the bus --------------------------------------------------------------------------------------------------------


def test_without_the_secret_of_the_mesh_nobody_can_try_out_what_was_said() -> None:
    cache = cache_after(asked("Hello?"), "Hi!")
    assert held(cache, asked("Hello?"), Prefixes(b"another mesh")) == 0
    assert held(cache, asked("Hello?"), Prefixes()) == 0


def test_a_long_conversation_sends_a_few_digests_and_its_next_turn_and_its_beginning_are_found() -> None:
    said = [f"line {n}" for n in range(10_001)]
    cache = cache_after(asked(*said), "the end")
    assert len(MESH.of(chat, asked(*said))) == SENT * SIZE
    assert len(MESH.read(chat, msgspec.to_builtins(asked(*said)), None).amounts) == HELD
    assert held(cache, asked(*said, "the end", "more")) == pytest.approx(tokens(asked(*said, "the end")))
    assert held(cache, asked("quite another")) == pytest.approx(tokens(asked()))


def test_a_kind_of_work_that_reads_nothing_pays_nothing() -> None:
    assert MESH.of(noop, noop.params()) == b""
    assert not MESH.read(noop, {}, {}).amounts


@given(st.binary(max_size=40))
def test_whatever_a_peer_sends_for_a_prefix_holds_nothing(garbage: bytes) -> None:
    assert cache_after(asked("Hello?"), "Hi!").held(garbage) == {}
    assert Holders().find(garbage) is None


# -- in bids -----------------------------------------------------------------------------------------------------------

OFFER = Offer(
    capability="llm.chat",
    model=None,
    warm=True,
    slots=2,
    free=2,
    load_s=0.0,
    fixed_s=0.1,
    rates={"prompt_tokens": 0.01, "new_tokens": 0.02},
    spread=1.0,
    watts=10.0,
)
WORK: Work = {"prompt_tokens": 340.0, "new_tokens": 10.0}
HOLDS: Work = {"prompt_tokens": 312.0}


def bid(node: str, holds: Work) -> Bid:
    made = make_bid(NodeId(node), JobId("j"), OFFER, less(WORK, holds), zone="lan", why="warm")
    return with_held(msgspec.structs.replace(made, bid_id=BidId(node)), holds, WORK)


def test_a_bid_counts_neither_seconds_nor_joules_for_what_is_held_and_says_so() -> None:
    holder, other = bid("holder", HOLDS), bid("other", {})
    assert other.finish_s - holder.finish_s == pytest.approx(312 * 0.01)
    assert other.energy_j - holder.energy_j == pytest.approx(312 * 0.01 * 10)
    assert (holder.why, other.why) == ("holds 312 of 340 prompt_tokens; warm", "warm")
    told = explain(rank([other, holder], Policy()), Policy())
    assert told.startswith("holder is best")
    assert "holds 312 prompt_tokens of it against 0" in told


def test_no_more_is_spared_than_there_is_to_do() -> None:
    assert less(WORK, {"prompt_tokens": 1000.0, "other": 5.0}) == {"prompt_tokens": 0.0, "new_tokens": 10.0}


@pytest.mark.parametrize("amount", [float("inf"), float("-inf"), float("nan"), -5.0])
def test_absurd_claims_of_a_peer_are_told_without_harm(amount: float) -> None:
    absurd = msgspec.structs.replace(bid("liar", {}), held={"prompt_tokens": amount})
    assert explain(rank([absurd, bid("other", {})], Policy()), Policy())


def test_a_job_that_waits_compares_nodes_by_what_they_said_they_hold() -> None:
    want, place = Want(WORK, Policy()), Place(NodeId("holder"), OFFER, 2)
    unheard = want.numbers(place, 0, True).finish_s
    want.hear(bid("holder", HOLDS))
    assert unheard - want.numbers(place, 0, True).finish_s == pytest.approx(312 * 0.01)
    want.hear(bid("holder", {}))
    assert want.numbers(place, 0, True).finish_s == pytest.approx(unheard)


def test_a_runner_that_reused_what_it_held_did_less_work() -> None:
    rest = less(WORK, {"prompt_tokens": 0.75 * 340})
    assert work_done(WORK, rest, Kept(slot=0, reused={"prompt_tokens": 0.75})) == rest
    assert work_done(WORK, rest, Kept(slot=0, reused={"prompt_tokens": 0.5}))["prompt_tokens"] == 170.0
    for absurd in (-1.0, 1.5, float("nan")):
        assert work_done(WORK, rest, Kept(slot=0, reused={"prompt_tokens": absurd})) == WORK


def test_what_a_runner_reuses_of_every_job_counts_as_done_because_bids_count_it_too() -> None:
    assert work_done(WORK, WORK, Kept(slot=0, reused={"prompt_tokens": 0.6})) == WORK


# -- whom an owner asks ------------------------------------------------------------------------------------------------


def test_an_owner_remembers_where_the_conversation_was_last() -> None:
    holders, first = Holders(), asked("Hello?")
    holders.note(MESH.of(chat, first), NodeId("a"))
    holders.note(MESH.of(chat, asked("Hello?", "Hi!", "And now?")), NodeId("b"))
    assert holders.find(MESH.of(chat, asked("Hello?", "Hi!", "And now?", "This.", "And then?"))) == "b"
    assert holders.find(MESH.of(chat, asked("Hello?", "Hi!", "Forked."))) == "a"
    assert holders.find(MESH.of(chat, asked("Hello?", system="Other."))) is None


def test_an_owner_forgets_the_oldest_of_many() -> None:
    holders = Holders()
    for number in range(REMEMBERED + 1):
        holders.note(MESH.of(chat, asked(str(number))), NodeId(str(number)))
    assert holders.find(MESH.of(chat, asked("0"))) is None
    assert holders.find(MESH.of(chat, asked("1"))) == "1"
