"""From offers to promises, and from what runners measured back to offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.capability import Prior
from outbid_contracts.messages import Offer
from outbid_contracts.runner import Ready, RunDone
from outbid_node.estimate import Speed, Speeds, estimate

PRIOR = Prior(load_s=4, fixed_s=0.1, rates={"tokens": 0.01}, crowding=0.5)


def offer(**changes: object) -> Offer:
    plain: dict[str, object] = {
        "capability": "test.echo",
        "model": None,
        "warm": True,
        "slots": 4,
        "free": 4,
        "load_s": 5.0,
        "fixed_s": 1.0,
        "rates": {"tokens": 0.1},
        "watts": 10.0,
        "usd_per_s": 0.001,
        "spread": 2.0,
    }
    return Offer(**(plain | changes))  # type: ignore[arg-type]


def test_a_warm_offer_is_fixed_time_and_work_times_rate() -> None:
    numbers = estimate(offer(), {"tokens": 20})
    assert numbers.finish_s == pytest.approx(3.0)
    assert numbers.finish_p90_s == pytest.approx(6.0)
    assert numbers.energy_j == pytest.approx(30.0)
    assert numbers.cost_usd == pytest.approx(0.003)


def test_a_cold_offer_adds_the_loading() -> None:
    assert estimate(offer(warm=False), {"tokens": 20}).finish_s == pytest.approx(8.0)


def test_jobs_that_share_a_runner_slow_each_other() -> None:
    crowded = estimate(offer(free=2, crowding=0.5), {"tokens": 20}).finish_s
    assert crowded == pytest.approx(3.0 * (1 + 0.5 * 2))


def test_unknown_units_count_as_free() -> None:
    assert estimate(offer(), {"pixels": 1e9}).finish_s == pytest.approx(1.0)


@given(st.dictionaries(st.sampled_from(["tokens", "pixels"]), st.floats(0, 1e9)), st.integers(0, 4))
def test_promises_are_never_negative_and_p90_never_below_p50(work: dict[str, float], free: int) -> None:
    numbers = estimate(offer(free=free, spread=0.5), work)
    assert 0 <= numbers.finish_s <= numbers.finish_p90_s


def test_warm_up_replaces_the_prior_and_jobs_replace_the_warm_up() -> None:
    speed = Speed(4, 0.1, {"tokens": 0.01})
    speed.learn_ready(Ready(slots=1, load_s=2.5, rates={"tokens": 0.02}))
    assert (speed.load_s, speed.rates["tokens"], speed.source) == (2.5, 0.02, "warm-up")
    for _ in range(20):
        speed.learn_job(_done(100, 5.0), running=0, promised_s=2.0, took_s=5.0)
    assert speed.rates["tokens"] == pytest.approx(0.05, rel=0.01)
    speed.learn_ready(Ready(slots=1, load_s=3.0, rates={"tokens": 9.0}))
    assert speed.rates["tokens"] == pytest.approx(0.05, rel=0.01), "a warm-up does not outweigh real jobs"


def test_crowding_is_taken_out_of_what_was_measured() -> None:
    speed = Speed(0, 0, {}, crowding=0.5)
    speed.learn_job(_done(10, 2.0), running=2, promised_s=None, took_s=2.0)
    assert speed.rates["tokens"] == pytest.approx(0.1)


def test_a_node_that_is_late_widens_its_spread() -> None:
    speed = Speed(0, 0, {"tokens": 0.01})
    for _ in range(10):
        speed.learn_job(_done(100, 1.0), running=0, promised_s=1.0, took_s=4.0)
    assert speed.spread == pytest.approx(4.0)


def test_speeds_survive_a_restart_and_a_broken_file(tmp_path: Path) -> None:
    file = tmp_path / "speeds.json"
    speeds = Speeds(file)
    speeds.of("llm.chat", "m", PRIOR).learn_job(_done(100, 5.0), running=0, promised_s=None, took_s=5)
    speeds.of("llm.chat", "unused", PRIOR)
    speeds.save()
    again = Speeds(file)
    assert again.of("llm.chat", "m", PRIOR).jobs == 1
    assert again.of("llm.chat", "unused", PRIOR).source == "prior"
    file.write_text('{"llm.chat m": {"strange": 1}, ')
    assert Speeds(file).of("llm.chat", "m", PRIOR).load_s == PRIOR.load_s
    file.write_text('{"llm.chat m": {"strange": 1}}')
    assert Speeds(file).of("llm.chat", "m", PRIOR).source == "prior"


def test_a_full_disk_costs_only_the_memory_of_speeds(tmp_path: Path) -> None:
    speeds = Speeds(tmp_path / "no-such-folder" / "speeds.json")
    speeds.of("llm.chat", "m", PRIOR).learn_ready(Ready(slots=1, load_s=1))
    speeds.save()


def _done(count: float, seconds: float) -> RunDone:
    return RunDone(attempt="j/1", result={}, measured={"tokens": (count, seconds)})
