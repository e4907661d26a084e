"""An offer is made anew when something it rests on has changed, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outbid_capabilities import testing
from outbid_contracts.capability import Machine
from outbid_contracts.messages import Offer, Resources
from outbid_contracts.runner import Ready
from outbid_node.catalogue import Catalogue
from outbid_node.config_sections import PowerSection
from outbid_node.estimate import estimate
from outbid_node.estimating.speeds import Speeds
from outbid_node.offering import Offering
from outbid_node.power.meter import EnergyMeter
from outbid_node.runners.pool import Room
from outbid_node.terms import USUAL, Terms

READY = Ready(slots=8, load_s=0.5, rates={"chunks": 0.01}, info={"device": "cpu"})


class Node:
    def __init__(self) -> None:
        echo = testing.echo
        section = testing.TestSettings(enabled=True)
        self.catalogue = Catalogue({echo.name: echo}, {"test": section}, Speeds(), Machine())
        self.entry = self.catalogue.entries[echo.name]
        self.meter = EnergyMeter(PowerSection(), Resources, dict)
        self.heard: list[tuple[str, str | None, Ready]] = []
        self.offering = Offering(self.catalogue, self.meter, lambda *told: self.heard.append(told))
        self.room = Room(True, 8, 8, "", READY)
        self.free = 8
        self.terms = USUAL

    def offer(self) -> Offer:
        return self.offering.offer(self.entry, None, self.room, self.free, self.terms)


def warm_up(node: Node) -> None:
    node.room = Room(True, 8, 8, "", Ready(slots=8, load_s=0.5, rates={"chunks": 0.5}, info=READY.info))


def get_cold(node: Node) -> None:
    node.room = Room(False, 8, 8, "", None)


def block(node: Node) -> None:
    node.room = Room(True, 8, 0, "makes room for another", READY)


def slow_down(node: Node) -> None:
    node.terms = Terms(slower=2.0, slower_why="somebody uses the machine")


def refuse(node: Node) -> None:
    node.terms = Terms(refuse="quiet hours")


def measure_watts(node: Node) -> None:
    node.meter.account.recall("cpu", (node.entry.capability.runner, None), joules=500.0, seconds=10.0)


def pay_more(node: Node) -> None:
    node.meter.account.usd_per_j += 1e-6


def hear_of_lengths(node: Node) -> None:
    told = Offer(
        capability=node.entry.capability.name,
        model=None,
        warm=True,
        slots=1,
        free=1,
        load_s=0.0,
        fixed_s=0.0,
        rates={},
        typical={"chunks": (3.0, 9.0)},
    )
    node.catalogue.speeds.heard(told)


def test_the_same_offer_as_long_as_nothing_changes() -> None:
    node = Node()
    first = node.offer()
    assert all(node.offer() is first for _ in range(3))
    node.free = 3
    fewer = node.offer()
    assert (fewer.free, first.free) == (3, 8)
    node.free = 8
    assert node.offer() is first


@pytest.mark.parametrize(
    "change", [warm_up, get_cold, block, slow_down, refuse, measure_watts, pay_more, hear_of_lengths]
)
def test_whatever_it_rests_on_changes_it_at_once(change: Callable[[Node], None]) -> None:
    node = Node()
    node.offer()
    before = node.offer()
    change(node)
    after = node.offer()
    assert after != before
    fresh = Node()
    fresh.catalogue, fresh.entry, fresh.meter = node.catalogue, node.entry, node.meter
    fresh.offering = Offering(node.catalogue, node.meter, lambda *told: None)
    fresh.room, fresh.terms, fresh.free = Room(True, 8, 8, "", READY), node.terms, node.free
    fresh.offer()  # it remembers the device of a runner that is cold now
    fresh.room = node.room
    assert fresh.offer() == after


def test_what_a_runner_says_of_itself_is_noted_once() -> None:
    node = Node()
    for _ in range(3):
        node.offer()
    assert node.heard == [("test.echo", None, READY)]
    warm_up(node)
    node.offer()
    assert len(node.heard) == 2


def test_an_estimate_is_that_of_the_offer_and_work_that_are_asked_for() -> None:
    node = Node()
    offer, work = node.offer(), {"chunks": 10.0}
    first = node.offering.estimate(offer, work)
    work["chunks"] = 20.0
    assert node.offering.estimate(offer, work) == estimate(offer, {"chunks": 20.0}) != first
    node.free = 1
    assert node.offering.estimate(node.offer(), work) == estimate(node.offer(), work)
