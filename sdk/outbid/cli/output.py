"""How listings look: tables for people, JSON for programs. Nothing here asks the mesh anything."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from outbid_contracts.admin import InviteReply, Sleeper
from outbid_contracts.announced import Announced, remedy
from outbid_contracts.artifacts import Artifact
from outbid_contracts.codec import VERSION
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Gpu, Resources
from outbid_contracts.requests import ModelList, NodeView

if TYPE_CHECKING:
    from rich.table import Table


def say(message: Any) -> None:
    """One JSON object on one line."""
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
    sys.stdout.flush()


def error(error: OutbidError) -> None:
    sys.stderr.write(f"outbid: {error.message}\n")


def table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def show(*parts: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for part in parts:
        console.print(part)


# -- nodes and models --------------------------------------------------------------------------------------------------


def nodes(views: Sequence[NodeView], away: Sequence[Sleeper], *, as_json: bool) -> None:
    """JSON has only those that are there."""
    if as_json:
        say(views)
        return
    columns = ("node", "id", "state", "zone", ">cores", ">load", ">memory free", "gpu", "battery")
    rows = table(*columns, ">running", ">rtt", "offers")
    for view in views:
        presence = view.presence
        resources = presence.resources
        rows.add_row(
            f"{presence.name} (here)" if view.here else presence.name,
            presence.node,
            presence.state,
            presence.zone,
            str(resources.cpu_count),
            "–" if resources.cpu_percent is None else f"{resources.cpu_percent:.0f} %",
            f"{resources.memory_free_mib / 1024:.1f} GiB",
            _gpus(resources),
            _battery(resources),
            str(presence.running),
            f"{view.rtt_ms:.1f} ms" if view.rtt_ms is not None else "–",
            ", ".join(sorted({offer.capability for offer in presence.offers})) or "nothing",
        )
    show(rows, *_remarks(views), *map(_away, away))


def _away(sleeper: Sleeper) -> str:
    since = time.strftime("%a %d %b %H:%M", time.localtime(sleeper.last_seen_ms / 1000))
    how = f"`outbid wake {plain(sleeper.name)}` may wake it" if sleeper.wakeable else "no hardware address is known"
    return f"[dim]{plain(sleeper.name)} is away since {since}; {how}[/dim]"


def _gpus(resources: Resources) -> str:
    """As `RTX 4090 20/24 GiB 64 °C`, one line for each."""
    return "\n".join(map(_gpu, resources.gpus)) or "–"


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("AMD ")]
    if gpu.memory_mib is not None:
        free = "" if gpu.memory_free_mib is None else f"{gpu.memory_free_mib / 1024:.0f}/"
        parts.append(f"{free}{gpu.memory_mib / 1024:.0f} GiB{' shared' if gpu.unified else ''}")
    parts += [] if gpu.temperature_c is None else [f"{gpu.temperature_c:.0f} °C"]
    parts += [] if gpu.power_w is None else [f"{gpu.power_w:.0f} W"]
    return " ".join(parts)


def _battery(resources: Resources) -> str:
    if resources.battery_percent is None:
        return "–"
    left = resources.battery_left_s
    discharging = f" ({left / 3600:.1f} h left)" if left is not None else " (discharging)"
    return f"{resources.battery_percent:.0f} %{discharging if resources.on_battery else ''}"


def _remarks(views: Sequence[NodeView]) -> Iterable[str]:
    for view in views:
        for trouble in view.presence.trouble:
            yield f"[red]{view.presence.name}: {trouble}[/red]"
        if view.presence.in_use:
            yield f"[yellow]{view.presence.name}: {plain(view.presence.in_use)}[/yellow]"
        for capability, why in sorted(view.presence.missing.items()):
            if not capability.startswith("test."):
                yield f"[dim]{view.presence.name} has no {capability}: {why}[/dim]"


def on_air(found: Sequence[Announced], this_node: NodeId | None, *, as_json: bool) -> None:
    """What `outbid discover` heard. Which mesh is ours is known by the local node being among them."""
    ours = next((it.mesh for it in found if it.node == this_node), None)
    if as_json:
        whose = {None: "unknown", True: "this", False: "other"}
        say([msgspec.to_builtins(it) | {"whose": whose[None if ours is None else it.mesh == ours]} for it in found])
        return
    if not found:
        sys.stdout.write("no node announces itself on the networks of this machine\n")
        return
    rows = table("node", "mesh", "ours", "version", "address", ">cores", "gpu", "battery", ">disk free", "offers")
    for it in found:
        cells = (
            f"{it.name} (here)" if it.node == this_node else it.name,
            it.mesh[:16],
            "?" if ours is None else "yes" if it.mesh == ours else "no",
            it.version,
            ", ".join(
                f"[{address}]:{it.port}" if ":" in address else f"{address}:{it.port}" for address in it.addresses
            ),
            *_announced(it.txt),
        )
        rows.add_row(*map(plain, cells))
    show(rows, *_incompatible(found, ours))


def plain(text: str) -> str:
    """Anybody on the network may have written it: no markup, nothing that steers a terminal."""
    from rich.markup import escape

    return escape("".join(sign if sign.isprintable() else "?" for sign in text))


def _announced(txt: Mapping[str, str]) -> Iterable[str]:
    number = f"{txt['gpus']}x " if "gpus" in txt else ""
    memory = txt.get("gpu_mib", "")
    gib = f" {int(memory) / 1024:.0f} GiB" if memory.isdecimal() and len(memory) < 12 else ""
    yield txt.get("cpus", "–")
    yield f"{number}{txt['gpu']}{gib}" if "gpu" in txt else "–"
    yield f"{txt['battery']} %{' (discharging)' if txt.get('power') == 'battery' else ''}" if "battery" in txt else "–"
    yield f"{txt['disk_gib']} GiB" if "disk_gib" in txt else "–"
    yield txt.get("caps", "").replace(",", ", ") or "–"


def _incompatible(found: Sequence[Announced], ours: str | None) -> Iterable[str]:
    for it in found:
        if it.wire != VERSION and ours in (None, it.mesh):
            yield f"[red]{plain(remedy(it.name, it.wire))}[/red]"


def models(found: ModelList, *, as_json: bool) -> None:
    if as_json:
        say([*found.models, *found.pulled])
        return
    rows = table("model", "capability", "node", ">size", "loaded", ">free slots", "source", "licence", "note")
    for view in found.models:
        note = view.blocked or ("default" if view.default else "")
        loaded = "warm" if view.warm else "cold"
        slots = f"{view.free} of {view.slots}"
        origin = (plain(view.source), plain(view.licence))
        rows.add_row(view.model, view.capability, view.name, _mib(view.size_mib), loaded, slots, *origin, note)
    for it in found.pulled:
        note = "not used by a capability" if it.percent is None else f"being pulled, {it.percent:.0f} %"
        origin = (plain(it.source), plain(it.licence))
        rows.add_row(plain(it.model), "–", it.name, _mib(it.size_mib), "–", "–", *origin, note)
    nothing = "no node has a model; `outbid nodes` says what is missing"
    show(rows if found.models or found.pulled else nothing)


def _mib(number: float) -> str:
    return size(int(number * 2**20)) if number else "–"


# -- artifacts ---------------------------------------------------------------------------------------------------------


def artifacts(found: Sequence[Artifact], names: Mapping[NodeId, str] = {}) -> None:
    """Files that jobs made. `names` of the nodes that hold them, where known."""
    rows = table("artifact", "file", "type", ">size", "node")
    for one in found:
        rows.add_row(one.id, plain(one.name), plain(one.type), size(one.size), plain(names.get(one.node, one.node)))
    show(rows)


def size(number: int) -> str:
    """
    >>> size(900), size(12_700), size(5 * 2**20), size(3 * 2**30)
    ('900 B', '12.4 KiB', '5.0 MiB', '3.0 GiB')
    """
    if number < 1024:
        return f"{number} B"
    kib = number / 1024
    if kib < 1024:
        return f"{kib:.1f} KiB"
    return f"{kib / 1024:.1f} MiB" if kib < 2**20 else f"{kib / 2**20:.1f} GiB"


# -- joining -----------------------------------------------------------------------------------------------------------


def line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def invitation(reply: InviteReply, *, guest: bool, qr: bool) -> None:
    minutes = max(1, round(reply.valid_s / 60))
    command = f"outbid join {reply.code}"
    if qr:
        import segno

        segno.make(command, error="m").terminal(compact=True)
    as_what = " as a guest" if guest else ""
    times = "once" if reply.uses == 1 else f"{reply.uses} times"
    line(f"On the other machine{as_what}, within {minutes} min ({times}):\n\n    {command}\n")
    if reply.addresses:
        host = f"[{reply.addresses[0]}]" if ":" in reply.addresses[0] else reply.addresses[0]
        line(f"If it does not find this machine:  {command} --peer {host}:{reply.port}")
