"""The arithmetic of the mesh benchmark, and that the auction prototype brings jobs to their results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from outbid_bench.mesh_found import OUTBID, PLAIN_ASKED, Found
from outbid_bench.mesh_messages import kind_of, of_jobs
from outbid_bench.mesh_parts import DAEMON, OTHERS, OWNER, RUNNER, spent_s
from outbid_bench.mesh_report import _aims
from outbid_bench.prototype import Place, plain_server, prototype


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        ("mesh.test.noop", "request"),
        ("mesh.node.7k2f9qzt.cfp", "cfp"),
        ("mesh.node.7k2f9qzt.settle", "settle"),
        ("mesh.node.7k2f9qzt.lease", "lease"),
        ("mesh.job.01k3m2v7x0.event", "event"),
        ("mesh.presence.7k2f9qzt", "other"),
        ("$JS.API.INFO", "other"),
    ],
)
def test_a_message_is_counted_by_what_it_is_for(subject: str, kind: str) -> None:
    assert kind_of(subject) == kind


def test_what_goes_on_without_jobs_is_not_counted_as_theirs() -> None:
    counted = Counter({"other": 50, "lease": 9, "lease reply": 9, "award reply": 2, "request": 4, "award": 2})
    assert of_jobs(counted) == {"request": 4, "award": 2, "award reply": 2}


def test_processor_time_is_that_between_the_two_looks() -> None:
    before = {(OWNER, DAEMON): 1.0, (OTHERS, RUNNER): 2.0}
    assert spent_s(before, {(OWNER, DAEMON): 1.5, (OTHERS, DAEMON): 7.0}) == {(OWNER, DAEMON): 0.5}


def found(nodes: int, per_s: float, asked_per_s: float = 8000.0, p50: float = 0.001) -> Found:
    return Found(nodes, p50={OUTBID: [p50], PLAIN_ASKED: [0.0007]}, per_s={OUTBID: [per_s], PLAIN_ASKED: [asked_per_s]})


@pytest.mark.parametrize(
    ("per_s", "asked_per_s", "met"),
    [(5001.0, 8000.0, True), (4999.0, 8000.0, False), (5001.0, 11_000.0, False)],
    ids=["both", "too few", "too few beside the prototype"],
)
def test_the_rate_with_five_nodes_must_reach_the_higher_of_two_marks(
    per_s: float, asked_per_s: float, met: bool
) -> None:
    rate, of_asked, latency = _aims([found(1, 9000.0), found(5, per_s, asked_per_s)])
    assert (rate.met and of_asked.met) is met
    assert latency.met


def test_fifty_nodes_are_held_against_five() -> None:
    assert [aim.met for aim in _aims([found(5, 6000.0), found(50, 3500.0)])] == [True, True, True, False]


async def test_the_prototype_brings_jobs_to_their_results_in_both_ways(tmp_path: Path) -> None:
    with plain_server(tmp_path) as url:
        places = [Place(f"n{n}", url, None) for n in range(5)]
        async with prototype(places, tmp_path / "nodes.log") as caller:
            for _ in range(20):
                await caller.standing()
                await caller.asked()
