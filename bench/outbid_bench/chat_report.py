"""Tables, aims and plots of the subset `chat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from outbid_bench import chat_turns
from outbid_bench.chat_found import XLLAMACPP, Figures, Found, direct_name, mesh_name
from outbid_bench.chat_turns import Turns
from outbid_bench.chat_two_nodes import TwoNodes
from outbid_bench.plots import Lines
from outbid_bench.report import Aim, Section, Table
from outbid_bench.stats import Spread, ratios, spread


def section(engines: Sequence[str], found: Found, turns: Turns, two_nodes: TwoNodes, about: str) -> Section:
    section = Section("chat", "Chat: a language model through the mesh", about)
    section.tables = [
        _alone_table(engines, found),
        _level_table("Tokens per second of all chats together", found, lambda it: spread(it.per_s).text("", 1)),
        _level_table("First token, ms", found, lambda it: spread(it.first_s).scaled(1000).text("", 0)),
        _level_table("Pause between two pieces, p99, ms", found, lambda it: _ms(it.gap_p99_s).text("", 0), _GAP_NOTES),
        _level_table("Processor time per token, ms", found, lambda it: _ms(it.cpu_s).text("", 1), _CPU_NOTES),
        Table("A conversation of five turns, while another one goes on", chat_turns.COLUMNS, turns.rows(), _TURN_NOTES),
        two_nodes.table(),
    ]
    section.aims = [*_alone_aims(engines, found), *_together_aims(engines, found), *_turn_aims(engines, turns)]
    section.aims.append(two_nodes.aim())
    section.plots = [
        Lines("speed", "Chats at once on one node", "chats at once", "tokens/s of all", _speeds(found)),
        Lines("turns", "Time to first token in a conversation", "turn", "ms", turns.series()),
    ]
    return section


BEHIND_SPEEDS = 2
"""Where a further table goes."""

_GAP_NOTES = (
    "Chats begin together. Outbid reads their prompts piece by piece (a quarter of a second, or 64 tokens) while the "
    "first ones write already: the longest pause is that of a piece. xllamacpp's server reads up to 2048 tokens in one "
    "go: nobody writes yet, all begin later, and whoever writes when a long prompt comes waits for all of it.",
)
_CPU_NOTES = (
    "Of all processes that serve, the reading of prompts included: the engine, and of a node its daemon, ledger and "
    "runner. What a node adds is done on the core that its engine leaves free.",
)
_TURN_NOTES = (
    "Two conversations take turns. An answer has 4 tokens, a question about 15; all of turn 5 is about 160. Read anew: "
    "the same messages behind an opening that nobody has read.",
    "llama_cpp.server is left out: it has one cache for all callers, which is lost to those who ask in between.",
)


def _ms(values: Sequence[float]) -> Spread:
    return spread(values).scaled(1000)


def _speeds(found: Found) -> Mapping[str, Sequence[tuple[float, Spread]]]:
    return {name: [(n, spread(it.per_s)) for n, it in by_level.items()] for name, by_level in found.items()}


def _alone_table(engines: Sequence[str], found: Found) -> Table:
    rows = []
    for name in found:
        mine = found[name][1]
        same = found[direct_name(_engine_of(name, engines))][1]
        rows.append(
            (
                name,
                spread(mine.per_s).text("", 1),
                ratios(mine.per_s, same.per_s).text("x"),
                _ms(mine.first_s).text(" ms", 1),
                mine.added_first_s(same).scaled(1000).text(" ms", 1),
            )
        )
    notes = (
        "Tokens of the whole answer over the whole time, first token included. Direct: a Python program that does "
        "nothing else. Through the mesh: auction, runner process and stream, asked through the SDK or, in JSON, as the "
        "`nats` command line does.",
        "Promise: nothing is kept; through the mesh the chat goes on elsewhere if its node dies, with the others it is "
        "lost.",
    )
    return Table("One chat at a time", ("what", "tokens/s", "of direct", "first token", "added"), rows, notes)


def _engine_of(name: str, engines: Sequence[str]) -> str:
    """The engine it is compared with."""
    if "xllamacpp" in name and "xllamacpp" in engines:
        return "xllamacpp"
    return engines[0]


def _level_table(title: str, found: Found, cell: Callable[[Figures], str], notes: Sequence[str] = ()) -> Table:
    levels = sorted({n for by_level in found.values() for n in by_level})
    rows = [(name, *(cell(by_level[n]) if n in by_level else "-" for n in levels)) for name, by_level in found.items()]
    return Table(title, ("chats at once", *map(str, levels)), rows, notes)


def _alone_aims(engines: Sequence[str], found: Found) -> list[Aim]:
    aims = []
    for engine in engines:
        mine, same = found[mesh_name(engine)][1], found[direct_name(engine)][1]
        ratio, added = ratios(mine.per_s, same.per_s), mine.added_first_s(same).scaled(1000)
        aims += [
            Aim(f"tokens/s of a chat, of {engine} direct", "≥ 0.97x", ratio.text("x"), ratio.median >= 0.97),
            Aim(f"added to first token, {engine}", "≤ 10 ms", added.text(" ms", 1), added.median <= 10),
        ]
    return aims


def _together_aims(engines: Sequence[str], found: Found) -> list[Aim]:
    aims = []
    for engine in engines:
        mine = found[mesh_name(engine)]
        gain = ratios(mine[8].per_s, mine[1].per_s)
        aims.append(Aim(f"8 at once, of one after the other, {engine}", "≥ 1.7x", gain.text("x"), gain.median >= 1.7))
        if XLLAMACPP in found:
            of = ratios(mine[8].per_s, found[XLLAMACPP][8].per_s)
            aims.append(Aim(f"8 at once, of {XLLAMACPP}, {engine}", "≥ 0.95x", of.text("x"), of.median >= 0.95))
    return aims


def _turn_aims(engines: Sequence[str], turns: Turns) -> list[Aim]:
    aims = []
    for engine in engines:
        share = turns.last_of_anew(mesh_name(engine))
        aims.append(
            Aim(f"first token of turn 5, of it read anew, {engine}", "≤ 0.5x", share.text("x"), share.median <= 0.5)
        )
    return aims
