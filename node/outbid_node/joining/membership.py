"""Which mesh a node is a member of: nothing in the state folder until it joined or invited somebody."""

from __future__ import annotations

from pathlib import Path

import msgspec

from outbid_node.bus.files import write_private
from outbid_node.home import StateUnusable

FILE = "membership.json"


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`open`: reachable from other machines (it invited or joined; before that everything is bound to loopback).

    `peers` are route addresses learned while joining. A guest offers only `capabilities` (all if empty), at most
    `slots`
    jobs at once, until `expires_s` (Unix time).
    """

    mesh: str
    open: bool = True
    peers: tuple[str, ...] = ()
    guest: bool = False
    capabilities: tuple[str, ...] = ()
    slots: int | None = None
    expires_s: float | None = None


def load(state: Path) -> Membership | None:
    """None for a node that never joined. Raises StateUnusable if the file is there but not readable."""
    file = state / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StateUnusable(f"{file} cannot be read ({error}); `outbid leave` removes it, then join again") from error


def save(state: Path, membership: Membership) -> None:
    """Raises StateUnusable if it cannot be kept."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        write_private(state / FILE, msgspec.json.format(msgspec.json.encode(membership)).decode())
    except OSError as error:
        raise StateUnusable(f"{state / FILE} cannot be written: {error.strerror or error}") from error


def forget(state: Path) -> None:
    (state / FILE).unlink(missing_ok=True)
