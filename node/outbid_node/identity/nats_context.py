"""A context for the `nats` command line: `nats --context outbid req mesh.llm.chat hi` reaches the local node."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from outbid_contracts.places import LocalNode
from outbid_contracts.roles import inbox_prefix
from outbid_node.bus.files import private_folder, write_private

log = logging.getLogger(__name__)

NAME = "outbid"


def context_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Where `nats` looks, on every system."""
    home = environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "nats" / "context" / f"{NAME}.json"


def write_context(local: LocalNode, file: Path | None = None) -> bool:
    """Comfort only: where it cannot be written, that is all. Returns whether it was."""
    file = file or context_file()
    try:
        settings = {
            "description": f"Outbid node {local.name}",
            "url": local.url,
            "creds": local.creds,
            "inbox_prefix": inbox_prefix(Path(local.creds).read_text()),
            "jetstream_domain": local.node,
        }
        private_folder(file.parent)
        write_private(file, json.dumps(settings, indent=2) + "\n")
    except (OSError, ValueError) as error:
        log.info("no context for the nats command: %s", error, extra={"action": "nats_context_failed"})
        return False
    return True
