"""Everything about one machine, under headings. Pure: from what it said last to pieces of text."""

from __future__ import annotations

from collections.abc import Iterator

from outbid_contracts.admin import Sleeper
from outbid_contracts.messages import Gpu, Offer, Presence
from outbid_tui.looks import NODE_MARKS, Cell, Look, Piece, ago, duration, joined, percent, size, watts
from outbid_tui.machines import mark, sentences
from outbid_tui.state import JobView, Machine, MeshState

Section = tuple[str, list[Cell]]


def details(machine: Machine, state: MeshState) -> Iterator[Section]:
    """Headings with lines below them."""
    presence = machine.presence
    yield "", [(mark(machine, state.clock()), (f"  {about(machine)}", "dim"))]
    if special := sentences(presence):
        yield "", [(piece,) for piece in special]
    jobs = state.running_on(presence.node)
    yield "Running", [job_line(view) for view in jobs[:8]] or [((_running(presence), "dim"),)]
    yield "Hardware", list(hardware(presence))
    offers = sorted(presence.offers, key=lambda offer: (not offer.warm, offer.capability, offer.model or ""))
    yield "Offers", [line for offer in offers for line in offer_lines(offer)] or [(("nothing", "dim"),)]
    if missing := sorted(item for item in presence.missing.items() if not item[0].startswith("test.")):
        yield "Cannot", [((f"{capability}: ", ""), (why, "dim")) for capability, why in missing]


def sleeper_details(sleeper: Sleeper) -> Iterator[Section]:
    seen = f"  last seen {ago(sleeper.last_seen_ms)}" if sleeper.last_seen_ms else ""
    yield "", [(NODE_MARKS["away"], (seen, "dim"))]
    unknown = "Its hardware address is not known: it cannot be woken."
    yield "", ["w sends it the magic packet." if sleeper.wakeable else unknown]


def about(machine: Machine) -> str:
    presence = machine.presence
    parts = [presence.zone, presence.host, f"v{presence.version}"]
    parts += [f"{machine.rtt_ms:.1f} ms away"] if machine.rtt_ms is not None else []
    parts += ["always on"] if presence.always_on else []
    parts += ["keeps artifacts"] if presence.keeps_artifacts else []
    return " · ".join(part for part in parts if part)


def _running(presence: Presence) -> str:
    """Where no record of a job there is known, as of the short ones."""
    return f"{presence.running} short ones" if presence.running else "nothing"


def job_line(view: JobView) -> Cell:
    record = view.record
    progress = f" {view.step}/{view.steps}" if view.steps else ""
    left = f" {duration(view.eta_s)} left" if view.eta_s is not None else ""
    what = f"{record.capability}{f' {record.model}' if record.model else ''}"
    return ("▶ ", "accent"), (f"{record.id[-8:]} ", "dim"), (what, ""), (f"{progress}{left}", "accent")


def hardware(presence: Presence) -> Iterator[Cell]:
    resources = presence.resources
    load = f", {percent(resources.cpu_percent)} busy" if resources.cpu_percent is not None else ""
    yield f"{resources.cpu_count} cores{load}"
    if resources.memory_mib:
        yield f"{size(resources.memory_free_mib)} of {size(resources.memory_mib)} memory free"
    yield from map(gpu_line, resources.gpus)
    if resources.storage_mib:
        yield f"{size(resources.storage_free_mib)} of {size(resources.storage_mib)} disk free"
    if resources.temperatures_c:
        hottest = sorted(resources.temperatures_c.items(), key=lambda item: -item[1])
        yield joined([(hot(name, value),) for name, value in hottest[:6]])
    if resources.power_w is not None:
        yield (watts(resources.power_w), ""), (f" {resources.power_source}", "dim")
    if presence.macs:
        yield ((f"wakes on {', '.join(presence.macs[:3])}", "dim"),)


def gpu_line(gpu: Gpu) -> Cell:
    parts = [gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("AMD ")]
    if gpu.memory_mib is not None:
        free = f"{size(gpu.memory_free_mib)} of " if gpu.memory_free_mib is not None else ""
        parts.append(f"{free}{size(gpu.memory_mib)} {'shared' if gpu.unified else 'free'}")
    parts += [f"{percent(gpu.busy_percent)} busy"] if gpu.busy_percent is not None else []
    parts += [watts(gpu.power_w)] if gpu.power_w is not None else []
    line: list[Piece] = [(", ".join(parts), "")]
    return (*line, (" ", ""), hot("", gpu.temperature_c)) if gpu.temperature_c is not None else tuple(line)


def hot(name: str, celsius: float) -> Piece:
    look: Look = "bad" if celsius >= 90 else "warn" if celsius >= 80 else ""
    return f"{name} {celsius:.0f}°C".strip(), look


def offer_lines(offer: Offer) -> Iterator[Cell]:
    """What it offers and what its numbers rest on, or why it does not take work."""
    sign: Piece = ("▪ ", "good") if offer.warm else ("▫ ", "dim")
    pinned = " ⚑ pinned" if offer.pinned else ""
    tail = f" {offer.free}/{offer.slots} free{pinned}"
    yield sign, (offer.capability, ""), (f" {offer.model}" if offer.model else "", "bold"), (tail, "dim")
    if offer.blocked:
        yield ((f"  ▲ {offer.blocked}", "warn"),)
    elif offer.rests_on:
        speed = "" if offer.warm or not offer.load_s else f", {duration(offer.load_s)} to load"
        yield ((f"  {offer.rests_on}{speed}", "dim"),)
