"""The machine: programs, packages, clock, ports, memory, power."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import re
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

from outbid_contracts.errors import InvalidConfig
from outbid_node.bus import binary, ports
from outbid_node.bus.ledger import USUAL_PORT
from outbid_node.config import Config
from outbid_node.doctor.facts import Binary, Clock, Counters, Limits, Memory, Port, Power, Reach, Software
from outbid_node.power.rapl import Rapl
from outbid_node.resources import battery
from outbid_node.resources.files import Files

CONNECT_S = 1.0
_STA_UNSYNC = 0x40


def look_at_binary() -> Binary:
    try:
        path = binary.find()
        return Binary(path=str(path), version=binary.read_version(path))
    except InvalidConfig as error:
        return Binary(error=error.message)


def look_at_software() -> Software:
    installed, lacking = {}, []
    for requirement in importlib.metadata.requires("outbid") or ():
        name, condition = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0], "; " in requirement
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking += [] if condition else [name]
    return Software(
        outbid=importlib.metadata.version("outbid"),
        python=platform.python_version(),
        installed=installed,
        lacking=tuple(lacking),
    )


# -- clock -------------------------------------------------------------------------------------------------------------


class _Timex(ctypes.Structure):
    """The head of the kernel's `struct timex`, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("numbers", ctypes.c_long * 4),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def look_at_clock() -> Clock:
    return Clock(year=time.gmtime().tm_year, synced=_synced())


def _synced() -> bool | None:
    """Linux: the kernel knows whether somebody keeps its clock. Reading that needs no rights."""
    if sys.platform != "linux":
        return None
    state = _Timex()
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    return None if answer == -1 else not state.status & _STA_UNSYNC


# -- ports and addresses -----------------------------------------------------------------------------------------------


def look_at_ports(state: Path, config: Config) -> tuple[Port, ...]:
    """Those that a node with this configuration would take, for when none runs."""
    last = ports.remembered(state / "bus" / "ports.json")
    found = (
        _port("ledger", config.bus.port, last.get("ledger", USUAL_PORT)),
        _port("routes", config.bus.route_port, last.get("route", 0)),
    )
    return tuple(port for port in found if port.number)


def _port(purpose: Literal["ledger", "routes"], chosen: int | Literal["auto"], last: int) -> Port:
    """`last`: the one it had, which it takes again if it is free; 0: none."""
    number = last if chosen == "auto" else chosen
    holder = ports.holder(number) if number and not ports.is_free(number) else ""
    return Port(purpose=purpose, number=number, fixed=chosen != "auto", holder=holder)


def reach(address: str) -> Reach:
    """Whether anybody listens at this host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return Reach(address=address)
    except (OSError, ValueError) as error:
        silent = isinstance(error, TimeoutError)
        return Reach(address=address, error="no answer" if silent else getattr(error, "strerror", None) or str(error))


# -- memory, power, open files -----------------------------------------------------------------------------------------


def look_at_memory(daemon: int) -> Memory:
    """What runners of the process `daemon` (0: none) hold counts as free: it makes room for another model."""
    memory = psutil.virtual_memory()
    held = 0
    with suppress(psutil.Error, ValueError):
        held = sum(child.memory_info().rss for child in psutil.Process(daemon).children()) if daemon else 0
    return Memory(total_mib=memory.total / 2**20, free_mib=min(memory.total, memory.available + held) / 2**20)


def look_at_power() -> Power:
    found = battery.from_sysfs(Files(Path("/"))) if sys.platform == "linux" else battery.from_psutil()
    return Power(on_battery=found.get("on_battery"), percent=found.get("battery_percent"))


def look_at_counters(root: Path = Path("/")) -> Counters:
    rapl = Rapl(Files(root))
    rapl.watts(0.0)
    return Counters(there=rapl.denied or rapl.readable, readable=rapl.readable)


def look_at_limits(daemon: int) -> Limits:
    """Of the process `daemon` where the system tells, else of this one, which a node started here would inherit."""
    if daemon and sys.platform == "linux":
        with suppress(psutil.Error):
            process = psutil.Process(daemon)
            return Limits(most=_finite(process.rlimit(psutil.RLIMIT_NOFILE)), used=process.num_fds())
    if sys.platform == "win32":
        return Limits(most=None)
    import resource

    return Limits(most=_finite(resource.getrlimit(resource.RLIMIT_NOFILE)))


def _finite(limits: Sequence[int]) -> int | None:
    return limits[0] if 0 <= limits[0] < 2**40 else None
