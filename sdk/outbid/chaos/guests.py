"""Throw-away nodes of the user's own mesh, on this machine, for a drill to kill. They offer `test.echo` and nothing
else, so nobody's work lands on them, and they own only the jobs that are handed in at them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from outbid.chaos.door import Door
from outbid.chaos.victims import until_up
from outbid.chaos.workload import CAPABILITY
from outbid.connection import local_node
from outbid.daemons import Daemon
from outbid_contracts import subjects
from outbid_contracts.errors import OutbidError
from outbid_contracts.requests import NodeList

SLOTS = 4
TOGETHER_S = 30.0
POLL_S = 0.1


class NotTogether(OutbidError):
    """The throw-away nodes do not see the local node, or it does not see them."""

    code = "not_together"


class _Home(msgspec.Struct, frozen=True):
    """What the local daemon was started with, as far as another node of its mesh must know."""

    mesh: str
    keyring: str
    """Empty: the usual one."""


def guests(names: Sequence[str], folder: Path, state: Path | None, trace: Path) -> list[Daemon]:
    """Not started yet. `state` is that of the local node, whose mesh they join. Raises NoNode, NotTogether."""
    home = _home(state)
    flags = ["--log-level", "warning", "--json-logs"]
    settings = {"test.enabled": "true", "test.slots": SLOTS, "log.trace": trace, "node.always_on": "false"}
    flags += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [_guest(folder / name, home, flags) for name in names]


def _guest(state: Path, home: _Home, flags: Sequence[str]) -> Daemon:
    """An empty configuration file of its own, because it would take the user's; a membership, because it limits what
    is offered. What it leaves behind when it is killed is in the drill's folder too.
    """
    state.mkdir(mode=0o700, parents=True)
    (state / "config.toml").touch()
    membership = {"mesh": home.mesh, "open": False, "capabilities": [CAPABILITY]}
    (state / "membership.json").write_text(json.dumps(membership))
    environment = {"TMPDIR": str(state.parent)} | ({"OUTBID_KEYRING": home.keyring} if home.keyring else {})
    return Daemon(state, state.name, home.mesh, flags, environment)


def _home(state: Path | None) -> _Home:
    """Asks the daemon's own program, with the arguments and the environment that the running one has."""
    import psutil

    local = local_node(state)
    try:
        process = psutil.Process(local.pid)
        arguments, environment = process.cmdline(), process.environ()
    except psutil.Error as error:
        raise NotTogether(f"cannot see how the node {local.name} (pid {local.pid}) was started: {error}") from error
    given = arguments[arguments.index("up") + 1 :] if "up" in arguments else []
    asked = subprocess.run(
        [sys.executable, "-m", "outbid_node", "config", *given, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise NotTogether(f"cannot learn the mesh of the node {local.name}: {asked.stderr.strip()}")
    config = json.loads(asked.stdout)
    mesh = next(row["value"] for row in config["settings"] if row["key"] == "mesh.name")
    with suppress(FileNotFoundError):
        mesh = json.loads((Path(config["state"]) / "membership.json").read_text())["mesh"]
    return _Home(mesh, environment.get("OUTBID_KEYRING", ""))


async def gather(daemons: Sequence[Daemon], door: Door) -> None:
    """Start them; returns when the local node (`door`) lists them all. Raises NotTogether, NotBack."""
    for daemon in daemons:
        daemon.spawn()
    for daemon in daemons:
        await until_up(daemon)
    wanted = {local_node(daemon.state).node for daemon in daemons}
    deadline = time.monotonic() + TOGETHER_S
    while time.monotonic() < deadline:
        with suppress(OutbidError):
            there: NodeList = await door.ask(subjects.NODES, {}, NodeList, timeout_s=5)
            if wanted <= {view.presence.node for view in there.nodes}:
                return
        await asyncio.sleep(POLL_S)
    raise NotTogether(f"the node of this machine and the throw-away nodes did not meet within {TOGETHER_S:.0f} s")
