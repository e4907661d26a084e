"""Memory of two kinds: where needs count, who is stopped for whom, and that no plan promises more than there is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.messages import Gpu, Resources
from outbid_node.config_sections import LimitsSection
from outbid_node.runners.memory import Memory, Others, enough, total, whole_and_free
from outbid_node.runners.turns import Holder, Rules, Want, giving_way, plan

MIB = st.integers(0, 12).map(float)
MEMORY = st.builds(Memory, MIB, MIB)
TIMES = st.integers(0, 60).map(float)
NOW = 60.0


@st.composite
def holders(draw: st.DrawFn) -> list[Holder[str]]:
    """What is loaded, within the budget of `BUDGET`."""
    found: list[Holder[str]] = []
    for n in range(draw(st.integers(0, 5))):
        need, loaded_at = draw(MEMORY), draw(TIMES)
        idle = draw(st.none() | st.floats(loaded_at, NOW))
        one = Holder(
            key=f"held-{n}", need=need, load_s=1, loaded_at=loaded_at, idle_since=idle, wanted=draw(st.booleans())
        )
        if total(other.need for other in (*found, one)).fits(BUDGET):
            found.append(one)
    return found


BUDGET = Memory(24, 16)
WANTS = st.lists(st.builds(Want, key=st.uuids().map(str), need=MEMORY, load_s=TIMES, since=TIMES), max_size=5)


@given(holders(), WANTS)
def test_what_is_promised_to_all_turns_together_fits_and_the_busy_are_never_stopped(
    held: list[Holder[str]], wants: list[Want[str]]
) -> None:
    turns = plan(BUDGET, held, wants, NOW, Rules())
    victims = [victim.key for turn in turns.values() for victim in turn.victims]
    assert len(victims) == len(set(victims))  # nobody gives way to two
    stay = total(one.need for one in held if one.key not in victims)
    assert (stay + total(turn.want.need for turn in turns.values())).fits(BUDGET)
    for turn in turns.values():
        if turn.open:
            left = total(one.need for one in held if one not in turn.victims)
            assert (left + turn.want.need).fits(BUDGET)
            assert all(victim.idle_since is not None for victim in turn.victims)


@given(holders(), WANTS)
def test_one_after_the_other_all_that_is_wanted_and_fits_at_all_gets_its_turn(
    held: list[Holder[str]], wants: list[Want[str]]
) -> None:
    """Each that is loaded works until it gives way; time passes from turn to turn."""
    rules, now = Rules(turn_max_s=10.0), NOW
    waiting = [one for one in wants if one.need.fits(BUDGET)]
    for _ in range(100):
        turns = plan(BUDGET, held, waiting, now, rules)
        opened = next((turn for turn in turns.values() if turn.open), None)
        if opened is None:
            stopping = giving_way(turns, now, rules)
            held = [_idle(one, now) if one.key in stopping else one for one in held]
            now = (
                now if stopping and any(one.key in stopping for one in held) and _opens(held, waiting, now) else now + 1
            )
            continue
        assert total(one.need for one in held if one not in opened.victims).fits(BUDGET)
        held = [one for one in held if one not in opened.victims]
        held.append(Holder(key=opened.want.key, need=opened.want.need, load_s=1.0, loaded_at=now, wanted=True))
        waiting = [one for one in waiting if one is not opened.want]
    assert waiting == []


def _idle(one: Holder[str], now: float) -> Holder[str]:
    """Its last attempt has ended."""
    return Holder(key=one.key, need=one.need, load_s=1.0, loaded_at=one.loaded_at, idle_since=now, wanted=one.wanted)


def _opens(held: list[Holder[str]], waiting: list[Want[str]], now: float) -> bool:
    return any(turn.open for turn in plan(BUDGET, held, waiting, now, Rules(turn_max_s=10.0)).values())


@given(st.lists(MEMORY, max_size=6), MEMORY)
def test_enough_gives_back_what_is_short_and_nothing_needless(needs: Sequence[Memory], short: Memory) -> None:
    chosen = enough(needs, lambda need: need, short)
    if chosen is None:
        assert short - total(needs)
        return
    assert not short - total(chosen)
    for n in range(len(chosen)):
        assert short - total(chosen[:n] + chosen[n + 1 :])


def test_the_ones_first_named_are_stopped_first() -> None:
    old, new, newest = Memory(1), Memory(1.0, 0.0), Memory(2)
    assert enough([old, new, newest], lambda need: need, Memory(2)) == [old, new]
    assert enough([old, newest], lambda need: need, Memory(2)) == [newest]


@pytest.mark.parametrize(
    ("need", "budget", "placed"),
    [
        (Memory(100, 900), Memory(2000, 1000), Memory(100, 900)),
        (Memory(100, 900), Memory(2000, 0), Memory(1000, 0)),  # no card, or unified memory
        (Memory(100, 900), Memory(2000, 600), Memory(400, 600)),  # a part of it stays outside
    ],
)
def test_what_the_card_cannot_hold_counts_as_the_machines_own(need: Memory, budget: Memory, placed: Memory) -> None:
    assert need.placed(budget) == placed


def test_auto_is_nine_tenths_of_the_card_and_nothing_without_one() -> None:
    assert LimitsSection().gpu_memory_budget_mib(1000) == 900
    assert LimitsSection().gpu_memory_budget_mib(0) == 0
    assert LimitsSection(gpu_memory_mib=5000).gpu_memory_budget_mib(1000) == 1000
    assert LimitsSection(gpu_memory_mib=0).gpu_memory_budget_mib(1000) == 0


def test_of_several_cards_the_largest_counts_and_unified_memory_is_the_machines() -> None:
    small = Gpu(name="small", vendor="nvidia", memory_mib=4000, memory_free_mib=3000)
    large = Gpu(name="large", vendor="nvidia", memory_mib=8000, memory_free_mib=500)
    apple = Gpu(name="M4", vendor="apple", memory_mib=16_000, unified=True)
    silent = Gpu(name="silent", vendor="amd")
    machine = Resources(memory_mib=16_000, memory_free_mib=9_000, gpus=(small, large))
    assert whole_and_free(machine) == (Memory(16_000, 8000), Memory(9_000, 500))
    for gpus in ((), (apple,), (silent,)):
        machine = Resources(memory_mib=16_000, memory_free_mib=9_000, gpus=gpus)
        assert whole_and_free(machine) == (Memory(16_000, 0), Memory(9_000, 0))


# -- other programs ----------------------------------------------------------------------------------------------------

WHOLE, LIMIT = Memory(10_000, 8_000), Memory(7_000, 7_200)


def test_what_a_game_takes_of_the_card_cannot_be_had() -> None:
    others = Others()
    assert others.observe(WHOLE, Memory(8_000, 1_000), Memory(500, 2_000))
    assert others.leave(LIMIT, WHOLE) == Memory(7_000, 0.95 * 8_000 - 5_000)


def test_our_own_runners_are_not_counted_as_others_loaded_or_not() -> None:
    others = Others()
    others.observe(WHOLE, Memory(9_000, 8_000), Memory())
    left = others.leave(LIMIT, WHOLE)
    assert not others.observe(WHOLE, Memory(8_000, 3_000), Memory(1_000, 5_000))
    assert others.leave(LIMIT, WHOLE) == left == LIMIT


def test_what_is_free_may_swing_a_little_without_any_change() -> None:
    others = Others()
    others.observe(WHOLE, Memory(9_000, 5_000), Memory())
    for swing in (-100, 150, -150, 100):
        assert not others.observe(WHOLE, Memory(9_000 + swing, 5_000 + swing), Memory())
    assert others.observe(WHOLE, Memory(9_000, 5_200), Memory())


def test_a_machine_that_tells_nothing_of_its_memory_has_its_budget() -> None:
    assert Others().leave(LIMIT, Memory()) == LIMIT
