"""A conversation in a mesh of two nodes that is begun on the one which the auction would not have taken.

From the second turn on the auction alone decides. It is to find the node that has read the conversation, because its
bid counts only what it has yet to read; beside it a caller that has its turns kept there by `prefer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outbid import Mesh, Policy
from outbid_bench.chat_engine import GREEDY, Clock, Messages
from outbid_bench.chat_turns import SAID, TOKENS, opened_with
from outbid_bench.nodes import Fleet
from outbid_bench.report import Aim, Table
from outbid_bench.stats import spread

AUCTION, PREFER = "the auction alone", "`prefer` the node of the last answer"
ASKED, OTHER = "n", "other"
"""Names of the nodes: the one that callers are connected to, and the second one."""


@dataclass(slots=True)
class TwoNodes:
    """Per way and round: seconds to the first text of each turn, and the share of later turns at the first's node."""

    first_s: dict[str, list[list[float]]] = field(default_factory=lambda: {AUCTION: [], PREFER: []})
    stayed: dict[str, list[float]] = field(default_factory=lambda: {AUCTION: [], PREFER: []})

    def add(self, way: str, first_s: Sequence[float], nodes: Sequence[str]) -> None:
        self.first_s[way].append(list(first_s))
        self.stayed[way].append(sum(node == nodes[0] for node in nodes[1:]) / len(nodes[1:]))

    def table(self) -> Table:
        rows = [
            (way, *(_ms(rounds, turn) for turn in range(len(SAID))), spread(self.stayed[way]).text("", 2))
            for way, rounds in self.first_s.items()
        ]
        turns = (f"turn {number}" for number in range(1, len(SAID) + 1))
        columns = ("first token, ms", *turns, "turns 2 to 5 where 1 was")
        return Table(
            "A conversation on two nodes, begun on the one that the auction would not take", columns, rows, _NOTES
        )

    def aim(self) -> Aim:
        share = spread(self.stayed[AUCTION])
        what = "turns of a conversation at the node that has read it"
        return Aim(what, "≥ 0.9", share.text("", 2), share.median >= 0.9)


_NOTES = ("The nodes are alike and idle. A bid counts only what its node has yet to read of the conversation.",)


async def measure_two_nodes(fleet: Fleet, mesh: Mesh, rounds: int, opening: Callable[[], str]) -> TwoNodes:
    """The fleet has the node ASKED, to which `mesh` is connected; OTHER is added."""
    await fleet.add(OTHER)
    await fleet.until_whole()
    for node in (ASKED, OTHER):
        await _turn(mesh, _said(opening()), node)  # loads the model
    found = TwoNodes()
    for _ in range(rounds):
        for way in (AUCTION, PREFER):
            taken = (await _turn(mesh, [opened_with(opening()), *_said(SAID[-1])], ""))[2]
            begin = OTHER if taken == ASKED else ASKED
            found.add(way, *await _conversation(mesh, opening(), way, begin))
    return found


async def _conversation(mesh: Mesh, opening: str, way: str, begin: str) -> tuple[list[float], list[str]]:
    talk, prefer = [opened_with(opening)], begin
    first_s, nodes = [], []
    for said in SAID:
        talk += _said(said)
        took_s, text, node = await _turn(mesh, talk, prefer)
        talk.append({"role": "assistant", "content": text})
        first_s.append(took_s)
        nodes.append(node)
        prefer = node if way == PREFER else ""
    return first_s, nodes


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def _turn(mesh: Mesh, talk: Messages, prefer: str) -> tuple[float, str, str]:
    """Seconds to the first text, the text, and the name of the node."""
    clock = Clock()
    policy = Policy(prefer=(prefer,)) if prefer else None
    stream = mesh.chat(talk, max_tokens=TOKENS, policy=policy, **GREEDY)
    async for chunk in stream:
        clock.piece(chunk.text)
    answer = clock.answer()
    return answer.first_s, answer.text, stream.name or ""


def _ms(rounds: Sequence[Sequence[float]], turn: int) -> str:
    return spread(first_s[turn] for first_s in rounds).scaled(1000).text("", 0)
