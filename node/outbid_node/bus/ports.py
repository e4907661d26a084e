"""Choosing ports that stay the same from one start to the next, and saying who holds one that is taken."""

from __future__ import annotations

import json
import random
import socket
import sys
from pathlib import Path

import psutil

from outbid_contracts.errors import OutbidError
from outbid_node.bus.files import write_private

_RANGE = range(20_000, 32_000)
"""Below the ports that systems lend to outgoing connections (from 32768 on Linux, 49152 elsewhere): while a server
restarts nobody is lent its port, and a client that knocks there meanwhile cannot be connected to itself.
"""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now. Asks by binding, and off Windows (where it would take 2 s) by knocking:
    macOS lets 127.0.0.1 be bound beside a listener on all addresses.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform == "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return sys.platform == "win32" or not _answers(port, family)


def _answers(port: int, family: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as knock:
        knock.settimeout(0.2)
        return knock.connect_ex(("::1" if family == socket.AF_INET6 else "127.0.0.1", port)) == 0


def free_port(*preferred: int | None, host: str = "127.0.0.1", avoid: frozenset[int] = frozenset()) -> int:
    """The first of `preferred` that is free, else a random free one."""
    tried = (*(port for port in preferred if port), *random.sample(_RANGE, 200))
    for port in tried:
        if port not in avoid and is_free(port, host):
            return port
    raise OutbidError(f"no free port between {_RANGE.start} and {_RANGE.stop} on {host}")


def holder(port: int) -> str:
    """Who listens on `port`, for an error message: `nats-server (pid 812)`, as far as the system lets us see."""
    try:
        taken = (
            conn
            for conn in psutil.net_connections("tcp")
            if conn.laddr and conn.laddr.port == port and conn.status == psutil.CONN_LISTEN and conn.pid
        )
        found = next(taken, None)
        return f"{psutil.Process(found.pid).name()} (pid {found.pid})" if found else "another program"
    except (psutil.Error, OSError):
        return "another program"


def remembered(file: Path) -> dict[str, int]:
    """The ports of the last start by name; nothing where the file is missing or spoilt."""
    try:
        found = json.loads(file.read_text())
        return {str(name): int(port) for name, port in found.items() if 0 < int(port) < 65536}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def remember(file: Path, **ports: int) -> None:
    write_private(file, json.dumps(remembered(file) | ports))
