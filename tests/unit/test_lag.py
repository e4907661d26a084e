"""What a busy daemon adds to its attempts: a running mean that is forgotten when the daemon is idle."""

from __future__ import annotations

import pytest

from outbid_node.lag import FORGOTTEN_S, Lag


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_expected_before_anything_was_noted() -> None:
    assert Lag(Clock()).seconds == 0.0


def test_a_steady_lag_is_expected_after_some_tens_of_attempts() -> None:
    lag = Lag(Clock())
    for _ in range(50):
        lag.note(0.02)
    assert lag.seconds == pytest.approx(0.02, rel=0.01)


def test_one_late_attempt_counts_for_a_tenth() -> None:
    lag = Lag(Clock())
    lag.note(1.0)
    assert lag.seconds == pytest.approx(0.1)


def test_a_daemon_that_was_idle_is_as_quick_as_ever() -> None:
    clock = Clock()
    lag = Lag(clock)
    for _ in range(50):
        lag.note(0.02)
    clock.now += FORGOTTEN_S
    assert lag.seconds == 0.0
    lag.note(0.001)
    assert lag.seconds == pytest.approx(0.0001)
