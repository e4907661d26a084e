"""`bids`: do promises come true? Three nodes on this machine, slowed down to a half and a quarter, and real chats.

In each round one chat, of another length than the one before, is put out to tender; then the same chat is run on each
node by preference, one after the other, so that it is known how long each would have taken.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from outbid import Mesh, Policy
from outbid_bench.nodes import Fleet
from outbid_bench.options import Options
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import percentile
from outbid_contracts.ids import new_job_id

SHARES = {"full": 1.0, "half": 0.5, "quarter": 0.25}
"""Node, and the part of its time that its runner may work."""

SLOW = "quarter"

LEARNING, JUDGED = 30, 12
"""Rounds before promises are judged, and after."""

WORDS = (2, 8, 24)
TOKENS = (2, 6, 12)
"""Short ones: the slow node takes four times as long, and each round has one on each node."""

PROMISED_WITHIN = 0.20
WRONG = 0.03
CLEARLY = 1.1
"""Two nodes that differ by less finish at the same time, as far as a caller can tell."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One chat on one node: the promise it was awarded on, and what it took until it was settled."""

    promised_s: float
    promised_p90_s: float
    took_s: float

    @property
    def off(self) -> float:
        return abs(self.promised_s - self.took_s) / self.took_s


@dataclass(frozen=True, slots=True)
class Round:
    """`chosen` by the auction; what the same chat then took on each node."""

    chosen: str
    ran: Mapping[str, Ran]

    @property
    def wrong(self) -> bool:
        return self.ran[self.chosen].took_s > CLEARLY * min(ran.took_s for ran in self.ran.values())


async def run(options: Options) -> Section:
    learning, judged = options.few_or_many((12, 8), (LEARNING, JUDGED))
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(options.folder / "bids", ()))
        for name, share in SHARES.items():
            flags = ["--set", f"limits.cpu_share={share}"]
            await fleet.add(name, [*flags, "--set", "courtesy.enabled=false"])
        await fleet.until_whole()
        slow = next(node for node in fleet.nodes if node.name == SLOW)
        mesh = await stack.enter_async_context(Mesh(state=slow.state))
        rounds = []
        for number in range(learning + judged):
            rounds.append(await _round(mesh, number))
            options.say(f"bids: round {number + 1} of {learning + judged}, {rounds[-1].chosen} was chosen")
    return _section(rounds, learning)


async def _round(mesh: Mesh, number: int) -> Round:
    chance = random.Random(number)
    words = [chance.choice(("river", "stone", "cloud", "winter", "lamp")) for _ in range(chance.choice(WORDS))]
    prompt, tokens = f"write a story with the words {' '.join(words)}", chance.choice(TOKENS)
    chosen, _ = await _chat(mesh, f"Free {number}: {prompt}", tokens, Policy(goal="fastest"))
    ran = {name: await _preferred(mesh, name, f"{name} {number}: {prompt}", tokens) for name in SHARES}
    return Round(chosen, ran)


async def _preferred(mesh: Mesh, name: str, prompt: str, tokens: int) -> Ran:
    """The prompt begins otherwise than the others', since what an engine has read before it does not read again."""
    return (await _chat(mesh, prompt, tokens, Policy(prefer=(name,))))[1]


async def _chat(mesh: Mesh, prompt: str, tokens: int, policy: Policy) -> tuple[str, Ran]:
    id = new_job_id()
    await mesh.chat(prompt, max_tokens=tokens, policy=policy, job=id, temperature=0.2).reply()
    record = await mesh.job(id)
    won = next(c for c in record.sheets[-1].bids if c.bid.node == record.node)
    assert record.took_s is not None
    return won.name, Ran(won.bid.finish_s, won.bid.finish_p90_s, record.took_s)


def _section(rounds: Sequence[Round], learning: int) -> Section:
    judged = rounds[learning:]
    off = {name: statistics.median(r.ran[name].off for r in judged) for name in SHARES}
    slow_wrong = sum(r.chosen == SLOW and r.wrong for r in rounds) / len(rounds)
    return Section(
        "bids",
        "Promise and actual of chats on three nodes",
        f"{len(rounds)} chats of {min(WORDS)} to {max(WORDS)} words and {min(TOKENS)} to {max(TOKENS)} tokens on three"
        " nodes of this machine that may use all, half and a quarter of their time, one job at a time, from a first"
        " start without calibration.",
        tables=[
            Table(
                f"After {learning} rounds",
                ["node", "median off", "90 % off less than", "within p90", "before", "seconds (median)"],
                [_row(name, rounds[:learning], judged) for name in SHARES],
                [
                    "`off` is |promised - took| / took, from award to settlement as the owner sees it; `before`: the"
                    " median of the first ten rounds",
                ],
            ),
            Table(
                "Auctions",
                ["", "all rounds", f"after {learning}"],
                [
                    ["auctions", str(len(rounds)), str(len(judged))],
                    ["won by a node that finished over 10 % later than another", _wrong(rounds), _wrong(judged)],
                    ["won by the slow node though it finished later", *(_slow(part) for part in (rounds, judged))],
                ],
            ),
        ],
        aims=[
            Aim(
                "each node's median estimate after 30 jobs, median absolute error",
                f"≤ {PROMISED_WITHIN:.0%}",
                ", ".join(f"{name} {value:.0%}" for name, value in off.items()),
                max(off.values()) <= PROMISED_WITHIN,
            ),
            Aim(
                "auctions won by the slow node where it finishes later",
                f"< {WRONG:.0%}",
                f"{slow_wrong:.0%}",
                slow_wrong < WRONG,
            ),
        ],
    )


def _row(name: str, before: Sequence[Round], judged: Sequence[Round]) -> list[str]:
    ran = [r.ran[name] for r in judged]
    first = statistics.median(r.ran[name].off for r in before[:10])
    kept = sum(one.took_s <= one.promised_p90_s for one in ran)
    return [
        f"{name} ({SHARES[name]:.0%})",
        f"{statistics.median(one.off for one in ran):.0%}",
        f"{percentile((one.off for one in ran), 0.9):.0%}",
        f"{kept} of {len(ran)}",
        f"{first:.0%}",
        f"{statistics.median(one.took_s for one in ran):.2f}",
    ]


def _wrong(rounds: Sequence[Round]) -> str:
    return str(sum(r.wrong for r in rounds))


def _slow(rounds: Sequence[Round]) -> str:
    return str(sum(r.wrong and r.chosen == SLOW for r in rounds))
