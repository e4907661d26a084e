"""Looking at everything, at once and with a limit on each look: what does not answer is itself a finding."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from outbid_contracts.capability import Capability
from outbid_contracts.doctor import Vitals
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_node.config import Config, Effective
from outbid_node.doctor import look_bus, look_folder, look_machine, look_multicast, look_programs, look_settings
from outbid_node.doctor.facts import Facts, Key, Other, Reach, Server, Settings, Store
from outbid_node.doctor.in_force import asked_for, restored
from outbid_node.doctor.look_programs import Traces
from outbid_node.doctor.look_settings import Notebook
from outbid_node.identity.keyring import Keyring

WHOLE_S = 5.5
"""After this the examination ends with what is known."""

LOOK_S = 2.5
LAST_S = 1.5
"""Kept for the looks that come last, because they need what the first ones found."""

MOST_ADDRESSES = 16

T = TypeVar("T")
Load = Callable[[Mapping[str, Capability]], tuple[Path, Effective]]


class Looker:
    """Runs looks side by side. One that fails or takes too long gives None, and `unknown` says why by its name."""

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}
        self._began = time.monotonic()

    @property
    def left_s(self) -> float:
        return max(0.1, WHOLE_S - (time.monotonic() - self._began))

    async def at(self, part: str, look: Callable[[], T], within_s: float = LOOK_S) -> T | None:
        """In a thread that nobody waits for at the end: a disk or share that hangs would hold the program."""
        return await self.wait(part, _in_thread(look), within_s)

    async def wait(self, part: str, looking: Awaitable[T], within_s: float = LOOK_S) -> T | None:
        within_s = min(within_s, self.left_s)
        try:
            async with asyncio.timeout(within_s):
                return await looking
        except TimeoutError:
            self.unknown[part] = f"it took longer than {within_s:.1f} s"
        except Exception as error:  # one sick part must not hide the others
            self.unknown[part] = f"{type(error).__name__}: {error}"
        return None


def _in_thread(look: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        future.set_exception(error) if error else future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = look()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waited so long
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return future


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bus:
    """What was learned over the bus, as far as it went."""

    ledger: Server | None = None
    store: Store | None = None
    vitals: Vitals | None = None
    others: tuple[Other, ...] | None = None


async def gather(state: Path, load: Load, notebook: Notebook) -> Facts:
    """Everything about the node with this state folder, within WHOLE_S."""
    looker, start = Looker(), asyncio.ensure_future
    traces = await looker.at("traces", lambda: look_programs.read_traces(state), 1.5)
    settings_read = start(looker.at("configuration", lambda: look_settings.look_at_settings(load, notebook)))
    bus_asked = start(looker.wait("bus", _ask_the_bus(state, traces, looker), WHOLE_S - LAST_S))
    binary = start(looker.at("nats-server", look_machine.look_at_binary))
    software = start(looker.at("software", look_machine.look_at_software))
    folder = start(looker.at("state folder", lambda: look_folder.look_at_folder(state)))
    writes = start(looker.at("disk speed", lambda: look_folder.time_writes(state)))
    clock = start(looker.at("clock", look_machine.look_at_clock))
    power = start(looker.at("power", look_machine.look_at_power))
    counters = start(looker.at("watts", look_machine.look_at_counters))
    echoes = start(looker.wait("multicast", look_multicast.look_at_multicast()))
    settings, declared = await settings_read or (None, {})
    bus = await bus_asked or _Bus()
    config = _in_force(state, bus.vitals, traces, settings, declared)
    key = await looker.at("mesh key", lambda: look_settings.look_at_key(state, config, Keyring()), LAST_S)
    daemon = traces.daemon if traces else None
    pid = daemon.pid if daemon and daemon.life != "none" else 0
    models = [name for section in config.capabilities for name in look_settings.named_models(config.settings(section))]
    disks = start(looker.at("disk space", lambda: look_folder.look_at_disks(state, models)))
    memory = start(looker.at("memory", lambda: look_machine.look_at_memory(pid)))
    limits = start(looker.at("open files", lambda: look_machine.look_at_limits(pid)))
    work = start(looker.at("capabilities", lambda: look_settings.look_at_work(state, config, declared, notebook)))
    reaches = start(_reach_all(looker, config, key, bus.vitals))
    down = daemon is not None and not daemon.locked
    ports = await looker.at("ports", lambda: look_machine.look_at_ports(state, config)) if down else None
    exists = (found := await folder) is None or found.exists
    return Facts(
        state=state,
        name=_name(bus.vitals, traces, config),
        node=traces.node if traces else "",
        binary=await binary,
        software=await software,
        folder=found,
        writes=await writes if exists else None,
        disks=await disks,
        settings=settings,
        config=config,
        key=key,
        daemon=daemon,
        ledger=bus.ledger,
        store=bus.store,
        vitals=bus.vitals,
        others=bus.others,
        ports=ports,
        clock=await clock,
        echoes=await echoes,
        reaches=await reaches,
        limits=await limits,
        power=await power,
        counters=await counters,
        memory=await memory,
        work=await work,
        unknown=looker.unknown,
    )


def _name(vitals: Vitals | None, traces: Traces | None, config: Config) -> str:
    if vitals is not None:
        return vitals.name
    return traces.local.name if traces and traces.local else config.node.name


def _in_force(
    state: Path,
    vitals: Vitals | None,
    traces: Traces | None,
    settings: Settings | None,
    declared: Mapping[str, Capability],
) -> Config:
    """What the running node says; else what it was started with, as far as that can be seen; else the next start's."""
    if vitals is not None:
        with suppress(msgspec.ValidationError):
            return restored(vitals.config, declared)
    asked = asked_for(traces.command, state, declared) if traces else None
    return asked or (settings.config if settings else None) or Config()


def _unlinked(vitals: Vitals | None) -> list[str]:
    """Routes of the nodes that are on the air but not in the mesh."""
    if vitals is None:
        return []
    linked = {seen.node for seen in vitals.sees}
    return [found.route for found in vitals.on_air if found.node not in linked]


async def _reach_all(looker: Looker, config: Config, key: Key | None, vitals: Vitals | None) -> tuple[Reach, ...]:
    """Addresses that were configured, that came with joining, or that nodes on the air announce."""
    found = sorted({*config.mesh.peers, *(key.peers if key else ()), *_unlinked(vitals)})[:MOST_ADDRESSES]
    return tuple(await asyncio.gather(*(_reach(looker, address) for address in found)))


async def _reach(looker: Looker, address: str) -> Reach:
    found = await looker.at(address, lambda: look_machine.reach(address))
    why = looker.unknown.pop(address, "")
    return found or Reach(address=address, error=why)


# -- over the bus ------------------------------------------------------------------------------------------------------


async def _ask_the_bus(state: Path, traces: Traces | None, looker: Looker) -> _Bus:
    """Nothing is asked where no daemon holds the state folder: its ledger is gone, or about to be ended."""
    if traces is None or not traces.daemon.locked or not traces.port:
        return _Bus()
    greeting = await look_programs.greet(traces.port, f"{traces.node}-ledger")
    ledger = Server(
        port=traces.port,
        greeting=greeting,
        program=traces.ledger,
        synced=traces.synced,
        last_error=traces.last_error,
    )
    if greeting != "ours" or traces.local is None:
        return _Bus(ledger=ledger)
    try:
        line = await look_bus.Line.open(traces.local.url, state / "identity" / "node.creds")
    except OutbidError as error:
        return _Bus(ledger=replace(ledger, refusal=error.message))
    try:
        return await _talk(line, NodeId(traces.node), ledger, looker)
    finally:
        await line.close()


async def _talk(line: look_bus.Line, node: NodeId, ledger: Server, looker: Looker) -> _Bus:
    store, vitals = await asyncio.gather(
        look_bus.look_at_store(line), looker.wait("vitals", look_bus.ask_vitals(line, node))
    )
    others = await look_bus.ask_others(line, vitals.sees) if vitals else None
    return _Bus(ledger=ledger, store=store, vitals=vitals, others=others)
