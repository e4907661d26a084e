"""How a machine looks: as a row, as a card, and in detail. Pure: from what it said last to pieces of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outbid_contracts.admin import Sleeper
from outbid_contracts.messages import Presence
from outbid_tui.looks import (
    NODE_MARKS,
    Cell,
    Look,
    Piece,
    ago,
    bar,
    duration,
    first,
    load_look,
    percent,
    spark,
    watts,
)
from outbid_tui.state import Machine, MeshState, memory_percent
from outbid_tui.widgets.table import Column

COLUMNS = (
    Column("machine", 12, grow=1, keep=99),
    Column("state", 10, keep=98),
    Column("free", 5, keep=90, right=True),
    Column("cpu", 10, grow=1, keep=85),
    Column("gpu", 10, grow=1, keep=80),
    Column("power", 12, grow=1, keep=75),
    Column("jobs", 7, keep=70),
    Column("memory", 10, grow=1, keep=60),
    Column("battery", 8, keep=50),
    Column("in memory", 18, grow=3, keep=40),
    Column("rtt", 7, keep=10, right=True),
)
NUMBER = 5
"""Characters of a reading after its sparkline: " 100%"."""

POWER = 7
CARD_WIDTH = 38
CARD_HEIGHT = 8


class Slots(NamedTuple):
    free: int
    all: int


def slots(presence: Presence) -> Slots:
    """Of the models in memory; where none is, of the roomiest that could be."""
    warm = {offer.model: offer for offer in presence.offers if offer.warm}  # one model may serve several capabilities
    if warm:
        return Slots(sum(offer.free for offer in warm.values()), sum(offer.slots for offer in warm.values()))
    best = max(presence.offers, key=lambda offer: offer.slots, default=None)
    return Slots(best.free, best.slots) if best else Slots(0, 0)


def warm_models(presence: Presence) -> list[str]:
    """By name, a pinned one with a mark; what needs no model is named by its capability."""
    found: dict[str, bool] = {}
    for offer in presence.offers:
        if offer.warm:
            name = offer.model or offer.capability
            found[name] = found.get(name, False) or offer.pinned
    return [f"⚑ {name}" if pinned else name for name, pinned in sorted(found.items())]


def mark(machine: Machine, now_s: float) -> Piece:
    """Its state, the gravest first."""
    presence = machine.presence
    if presence.state == "leaving":
        return NODE_MARKS["leaving"]
    if machine.away(now_s):
        return NODE_MARKS["silent"]
    if presence.state == "draining":
        return NODE_MARKS["draining"]
    if presence.trouble:
        return NODE_MARKS["trouble"]
    return NODE_MARKS["in use"] if presence.in_use else NODE_MARKS["up"]


def sentences(presence: Presence) -> list[Piece]:
    """What is special about it now, the gravest first."""
    troubles: list[Piece] = [(f"▲ {trouble}", "bad") for trouble in presence.trouble]
    in_use: list[Piece] = [(f"◒ {presence.in_use}", "warn")] if presence.in_use else []
    held: list[Piece] = [(f"◷ {presence.held}", "warn")] if presence.held else []
    return troubles + in_use + held


def row(machine: Machine, now_s: float, widths: dict[str, int]) -> Sequence[Cell]:
    """A cell for each of COLUMNS; `widths` has what each of them has now."""
    presence = machine.presence
    resources = presence.resources
    free = slots(presence)
    busy = presence.running + presence.waiting
    name: Piece = (f"{presence.name} ⌂" if machine.here else presence.name, "bold" if machine.here else "")
    battery = resources.battery_percent
    return (
        (name,),
        (mark(machine, now_s),),
        f"{free.free}/{free.all}" if free.all else "–",
        course(machine.cpu, widths["cpu"]),
        course(machine.gpu, widths["gpu"]),
        power(machine, widths["power"]),
        jobs_cell(presence) if busy else (("–", "dim"),),
        course(machine.memory, widths["memory"], scarce=True),
        "" if battery is None else battery_cell(machine),
        first(warm_models(presence), 4) or (("nothing", "dim"),),
        "" if machine.rtt_ms is None else f"{machine.rtt_ms:.1f}ms",
    )


def sleeper_row(sleeper: Sleeper) -> Sequence[Cell]:
    note = f"last seen {ago(sleeper.last_seen_ms)}" if sleeper.last_seen_ms else ""
    said = f"{note}{', w wakes it' if sleeper.wakeable else ''}"
    blank = ("",) * (len(COLUMNS) - 3)
    return ((sleeper.name, "dim"),), (NODE_MARKS["away"],), "", *blank[:-2], ((said, "dim"),), ""


def course(values: Sequence[float], width: int, *, scarce: bool = False, number: int = NUMBER) -> Cell:
    """A sparkline of percents and the last of them, in `width` characters. `scarce`: a high one is a warning."""
    if not values:
        return (("–".rjust(width), "dim"),)
    look = load_look(values[-1]) if scarce else ""
    blocks = spark(values, max(1, width - number), 0, 100)
    return (blocks, look or "accent"), (f"{percent(values[-1]):>{number}}", look)


def power(machine: Machine, width: int) -> Cell:
    if not machine.watts:
        return (("–".rjust(width), "dim"),)
    top = max(machine.watts)
    return (
        (spark(machine.watts, max(1, width - POWER), 0, max(top, 1.0)), "accent"),
        (f"{watts(machine.watts[-1]):>{POWER}}", ""),
    )


def jobs_cell(presence: Presence) -> Cell:
    running: Piece = (f"▶{presence.running}", "accent" if presence.running else "dim")
    waiting: Piece = (f" ◷{presence.waiting}", "warn" if presence.waiting else "dim")
    return running, waiting


def battery_cell(machine: Machine) -> Cell:
    resources = machine.presence.resources
    charge = resources.battery_percent or 0.0
    look: Look = "bad" if charge < 15 else "warn" if charge < 35 else ""
    return ((f"{'▾' if resources.on_battery else '▴'}{bar(charge / 100, 3)}{charge:3.0f}%", look),)


def card(machine: Machine, width: int) -> list[Cell]:
    """CARD_HEIGHT - 2 lines of `width` characters to stand inside a frame."""
    presence = machine.presence
    room = width - 5
    lines = [labelled("cpu", course(machine.cpu, room, number=POWER))]
    if machine.gpu:
        lines.append(labelled("gpu", course(machine.gpu, room, number=POWER)))
    lines.append(labelled("vram" if _own_memory(presence) else "ram", memory_line(presence, room)))
    if machine.watts:
        lines.append(labelled("watt", power(machine, room)))
    if presence.resources.battery_percent is not None:
        lines.append(labelled("batt", battery_line(machine, room)))
    work = labelled("free", slots_line(presence))
    special = sentences(presence)
    said: Cell = (special[0],) if special else ((first(warm_models(presence), 3) or "nothing in memory", "dim"),)
    return [*lines[: CARD_HEIGHT - 4], *[""] * (CARD_HEIGHT - 4 - len(lines)), work, said]


def labelled(label: str, cell: Cell) -> Cell:
    return ((f"{label:<5}", "dim"), *pieces(cell))


def pieces(cell: Cell) -> tuple[Piece, ...]:
    return ((cell, ""),) if isinstance(cell, str) else cell


def memory_line(presence: Presence, width: int) -> Cell:
    """How much is taken, as a bar and in figures."""
    taken = memory_percent(presence)
    if taken is None:
        return (("–", "dim"),)
    own = _own_memory(presence)
    whole = own or presence.resources.memory_mib
    text = f" {whole * taken / 100 / 1024:.1f}/{whole / 1024:.0f} GiB"
    look = load_look(taken)
    return (track(taken / 100, max(1, width - len(text))), look or "accent"), (text, look)


def battery_line(machine: Machine, width: int) -> Cell:
    resources = machine.presence.resources
    charge = resources.battery_percent or 0.0
    look: Look = "bad" if charge < 15 else "warn" if charge < 35 else ""
    left = f" {duration(resources.battery_left_s)} left" if resources.battery_left_s else ""
    text = f" {charge:.0f}% {'on battery' if resources.on_battery else 'plugged in'}{left}"
    return (track(charge / 100, max(1, width - len(text))), look or "good"), (text, look)


def slots_line(presence: Presence) -> Cell:
    free = slots(presence)
    if not free.all:
        return (("offers nothing  ", "dim"), *pieces(jobs_cell(presence)))
    dots = "●" * (free.all - free.free) + "○" * free.free if free.all <= 12 else ""
    figures = f"{free.free} of {free.all} slots"
    return (f"{figures} ", ""), (dots, "accent"), ("  ", ""), *pieces(jobs_cell(presence))


def track(fraction: float, width: int) -> str:
    """A bar whose empty part is seen."""
    return bar(fraction, width).replace(" ", "░")


def _own_memory(presence: Presence) -> int:
    return sum(gpu.memory_mib or 0 for gpu in presence.resources.gpus if not gpu.unified)


class Order(NamedTuple):
    """Those that are there, and those that are away."""

    machines: list[Machine]
    sleepers: list[Sleeper]


def in_order(state: MeshState) -> Order:
    """The machine connected to first, then by name; those away at the end."""
    machines = sorted(state.machines.values(), key=lambda machine: (not machine.here, *natural(machine.presence.name)))
    return Order(machines, state.sleepers())


def natural(name: str) -> tuple[str, int, str]:
    """To sort by: pi-2 before pi-10."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return stem, int(digits[:12] or 0), name
