"""`outbid doctor`: examines this machine, and asks others to examine themselves.

Exit codes: 0 healthy (there may be warnings), 1 there is a problem, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from outbid_contracts import subjects
from outbid_contracts.capability import Capability
from outbid_contracts.doctor import Checkup, DoctorReply, Finding, Seen, Vitals
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_contracts.places import state_dir
from outbid_node.config import Effective
from outbid_node.config_cli import load_from
from outbid_node.doctor import look_bus, look_programs
from outbid_node.doctor.examine import examine
from outbid_node.doctor.gather import gather
from outbid_node.doctor.look_settings import Notebook
from outbid_node.doctor.show import show

REMOTE_S = 9.0


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outbid doctor",
        description="Is this node healthy, and if not, what is to be done? Works with or without a running node.",
        epilog="Exit codes: 0 healthy (there may be warnings), 1 there is a problem, 2 wrong usage.",
    )
    parser.add_argument("--state", metavar="DIR", help="state folder of the node (OUTBID_STATE)")
    parser.add_argument("--config", metavar="FILE", help="configuration file (OUTBID_CONFIG)")
    parser.add_argument(
        "--set", dest="outbid_set", action="append", metavar="SECTION.KEY=VALUE", help="set any key (repeatable)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--node", action="append", default=[], metavar="NAME", help="let this other machine examine itself (repeatable)"
    )
    parser.add_argument("--mesh", action="store_true", help="all machines of the mesh: this one, then each other")
    return parser


def main(argv: Sequence[str]) -> int:
    options = parser_of().parse_args(argv)
    notebook = Notebook()
    logging.basicConfig(level=logging.INFO, handlers=[notebook], force=True)
    try:
        checkups = asyncio.run(_checkups(options, notebook))
    except KeyboardInterrupt:
        return 130
    reply = DoctorReply(healthy=all(checkup.healthy for checkup in checkups), checkups=tuple(checkups))
    if options.json:
        sys.stdout.write(msgspec.json.encode(reply).decode() + "\n")
    else:
        show(checkups)
    return 0 if reply.healthy else 1


async def _checkups(options: argparse.Namespace, notebook: Notebook) -> list[Checkup]:
    here = options.mesh or not options.node
    found = [await examine_here(options, notebook)] if here else []
    if options.mesh or options.node:
        found += await _examine_others(state_dir(options.state), None if options.mesh else options.node)
    return found


async def examine_here(options: argparse.Namespace, notebook: Notebook) -> Checkup:
    began = time.monotonic()
    state = state_dir(options.state)

    def load(declared: Mapping[str, Capability]) -> tuple[Path, Effective]:
        return load_from(options, declared)

    facts = await gather(state, load, notebook)
    return Checkup(
        name=facts.name,
        node=facts.node,
        state=str(state),
        findings=examine(facts),
        took_s=round(time.monotonic() - began, 3),
    )


# -- other machines ----------------------------------------------------------------------------------------------------


async def _examine_others(state: Path, names: Sequence[str] | None) -> list[Checkup]:
    """Those with these names or ids, or all; one that cannot be asked has a problem."""
    traces = look_programs.read_traces(state)
    if traces.local is None:
        return [_unasked(name, "no node runs here that could ask it") for name in names or ()]
    try:
        line = await look_bus.Line.open(traces.local.url, state / "identity" / "node.creds")
    except OutbidError as error:
        return [_unasked(name, f"the node here does not answer: {error.message}") for name in names or ()]
    try:
        vitals = await look_bus.ask_vitals(line, NodeId(traces.node))
        return list(await asyncio.gather(*_asked(line, vitals, names)))
    except OutbidError as error:
        return [_unasked(name, f"the node here does not answer: {error.message}") for name in names or ()]
    finally:
        await line.close()


def _asked(line: look_bus.Line, vitals: Vitals, names: Sequence[str] | None) -> list[asyncio.Task[Checkup]]:
    me = Seen(node=vitals.node, name=vitals.name, version=vitals.version)
    known = [*vitals.sees, me]
    wanted = [seen for seen in known if (seen is not me if names is None else seen.name in names or seen.node in names)]
    unknown = [name for name in names or () if name not in {it.name for it in known} | {it.node for it in known}]
    return [
        *(asyncio.ensure_future(_examine_other(line, seen)) for seen in wanted),
        *(asyncio.ensure_future(_absent(name)) for name in unknown),
    ]


async def _absent(name: str) -> Checkup:
    return _unasked(name, "no such machine is in the mesh now; `outbid nodes` lists those that are")


async def _examine_other(line: look_bus.Line, seen: Seen) -> Checkup:
    try:
        reply: DoctorReply = await line.read(subjects.admin(seen.node, "doctor"), DoctorReply, within_s=REMOTE_S)
        return reply.checkups[0]
    except (OutbidError, IndexError) as error:
        return _unasked(seen.name, str(error), seen.node)


def _unasked(name: str, why: str, node: str = "") -> Checkup:
    remedy = f"Run `outbid doctor` here first, then on {name} itself."
    return Checkup(name=name, node=node, findings=(Finding(check="node", level="problem", found=why, remedy=remedy),))
