"""Durable data across a change of the mesh's key: JetStream files it under the account, and a new key means another."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import msgspec

from outbid_node.bus.files import write_private

log = logging.getLogger("outbid.bus")

_NOTE = "account-changed.json"


class Change(msgspec.Struct, frozen=True):
    """Public keys of accounts."""

    old: str
    new: str


def note(bus_folder: Path, old: str, new: str) -> None:
    """Call this when the key changes, while the server still runs. Raises OSError."""
    write_private(bus_folder / _NOTE, msgspec.json.encode(Change(old, new)).decode())


def carry_over(bus_folder: Path, store: Path, account: str) -> None:
    """Before the server starts: give the new account what was the old one's, if that was noted for this account.

    Data of a mesh that was left stays where it is: it is nobody's in the next one.
    """
    file = bus_folder / _NOTE
    with suppress(FileNotFoundError):
        try:
            change = msgspec.json.decode(file.read_bytes(), type=Change)
        except msgspec.DecodeError as error:
            log.warning("%s is not readable: %s", file, error, extra={"action": "carry_over_failed"})
            return
        old, new = store / "jetstream" / change.old, store / "jetstream" / change.new
        if change.new != account or not old.is_dir() or new.exists():
            return
        old.rename(new)
        file.unlink()
        log.info("durable data goes on under the new key", extra={"action": "carried_over"})
