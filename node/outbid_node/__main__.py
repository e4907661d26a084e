"""`python -m outbid_node up|config|doctor|join|leave|creds`: the daemon in the foreground, its files, its membership.

Exit codes: 0 stopped on request, 1 a part failed, 2 bad configuration or arguments, 3 the state folder is in use or
unusable.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from outbid_node.lean import settle_imports, settle_memory  # isort: skip  # before the imports that it makes lean

from outbid_contracts.capability import Capability
from outbid_contracts.errors import InvalidConfig, OutbidError
from outbid_node import declarations, parent
from outbid_node.app import Node
from outbid_node.config import Config, Effective
from outbid_node.config_cli import add_flags, load_from, main_config
from outbid_node.home import StateUnusable
from outbid_node.joining import membership
from outbid_node.logs import set_up_logs

log = logging.getLogger(__name__)

RESTART = -1
"""Not an exit code: what was asked for needs a restart in place."""


def main(argv: Sequence[str] | None = None) -> int:
    settle_imports()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["config"]:
        return main_config(arguments[1:])
    if arguments[:1] == ["doctor"]:
        from outbid_node.doctor import cli as doctor

        return doctor.main(arguments[1:])
    if arguments and arguments[0] in ("join", "leave", "creds"):
        from outbid_node.joining import cli

        return cli.main(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(prog="outbid up", description="Run this machine's node in the foreground.")
    add_flags(parser)
    parser.add_argument("--json", dest="outbid_json_logs", action="store_true", help="the same as --json-logs")
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input comes to its end")
    return _up(parser.parse_args(arguments[1:] if arguments[:1] == ["up"] else arguments))


def _up(arguments: argparse.Namespace) -> int:
    """Run the node; again as long as it asks for a restart in place."""
    set_up_logs("info", as_json=arguments.outbid_json_logs)
    while (code := _run_once(arguments)) == RESTART:
        log.info("starting again in place", extra={"action": "node_restarting"})
    return code


def _run_once(arguments: argparse.Namespace) -> int:
    try:
        declared = declarations.load()
        state, effective = load_from(arguments, declared)
        _check_mesh(state, effective)
    except OutbidError as error:
        return _refuse(error)
    set_up_logs(effective.config.log.level, as_json=effective.config.log.json)
    for warning in effective.warnings:
        log.warning("%s", warning, extra={"action": "config_warning"})
    return _run(_serve(effective.config, declared, state, with_parent=arguments.with_parent))


def _check_mesh(state: Path, effective: Effective) -> None:
    """A mesh name that somebody wrote down must be the one this node joined."""
    member, source = membership.load(state), effective.sources["mesh.name"]
    if member is not None and source != "default" and member.mesh != effective.config.mesh.name:
        raise InvalidConfig(
            f"this node is a member of mesh {member.mesh}, but mesh.name is {effective.config.mesh.name} ({source}); "
            "remove that, or `outbid leave` first"
        )


def _run(main: Coroutine[Any, Any, int]) -> int:
    if sys.platform != "win32":
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


async def _serve(config: Config, declared: dict[str, Capability], state: Path, *, with_parent: bool) -> int:
    stop = asyncio.Event()
    _on_signals(stop)
    if with_parent:
        parent.watch(stop.set)
    node = Node(config, declared, state)
    try:
        await node.start()
    except OutbidError as error:
        return _refuse(error)
    settle_memory()
    node.stopping.add_done_callback(lambda stopping: stop.set())
    await stop.wait()
    await node.stop()
    if node.failure:
        log.critical("stopped because %s", node.failure, extra={"action": "node_failed"})
        return 1
    return RESTART if node.restarting else 0


def _on_signals(stop: asyncio.Event) -> None:
    """The first SIGINT or SIGTERM stops in order, a second one at once."""

    def ask() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, ask)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(ask))


def _refuse(error: OutbidError) -> int:
    log.error("%s", error.message, extra={"action": "start_refused", "code": error.code})
    if isinstance(error, InvalidConfig):
        return 2
    return 3 if isinstance(error, StateUnusable) else 1


if __name__ == "__main__":
    sys.exit(main())
