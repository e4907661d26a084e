"""The text of nats-server's configuration. Pure: everything that varies is an argument.

Its parser needs a space before each brace, takes `$name` outside quotes for a variable, and JSON's escapes inside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outbid_node.identity.node import Identity

MAX_PAYLOAD_MIB = 16
"""Largest message. Both servers must say so: a router at its default of 1 MiB would cut the link on a larger one."""

MAX_FILE_MIB = 2**20
"""JetStream's quota on disk: more than any disk here, because what fills it (artifacts) bounds itself, and a quota that
shrank with the free space would refuse its own streams.
"""

MAX_MEMORY_MIB = 64


TLS_TIMEOUT_S = 5
"""A Raspberry Pi that loads a model takes its time for a handshake; the server's own default is 2."""


def ledger(
    *,
    server_name: str,
    port: int,
    log_file: Path,
    domain: str,
    store: Path | None,
    leaf_port: int | None,
    identity: Identity,
) -> str:
    """The local server; without JetStream if `store` is None, a leaf of the router at `leaf_port` if there is one."""
    lines = [*_head(server_name, port, log_file), identity.auth()]
    if store is not None:
        # Acknowledged must mean on disk (default: fsync every 2 minutes); nats-py's ordered consumers break on v2 acks.
        lines += [
            f"jetstream {{ store_dir: {_quote(store)}, domain: {_quote(domain)}, sync_interval: always,"
            f" max_file: {MAX_FILE_MIB}MiB, max_mem: {MAX_MEMORY_MIB}MiB }}",
            "feature_flags { js_ack_fc_v2: false }",
        ]
    if leaf_port is not None:
        url = _quote(f"nats-leaf://127.0.0.1:{leaf_port}")
        lines.append(
            f"leafnodes {{ reconnect: 1s, remotes: [ {{ url: {url}, account: {identity.account},"
            f" credentials: {_quote(identity.node_creds)}, compression: off }} ] }}"
        )
    return "\n".join(lines) + "\n"


def router(
    *,
    server_name: str,
    client_port: int,
    log_file: Path,
    cluster: str,
    bind: str,
    route_port: int,
    leaf_port: int,
    routes: Sequence[str],
    ping_s: int,
    identity: Identity,
) -> str:
    """Core NATS in a full mesh of routes. `routes` is a few known peers as host:port; gossip tells the rest.

    A peer, whichever side called, must prove to have the mesh's route key (`pinned_certs`). `insecure` only leaves out
    that the name or address in its certificate fits the one called: nobody knows addresses in advance.
    Pings every `ping_s`, twice: at 3 s a frozen peer is let go after 6 to 9 s. `no_advertise`: the ledger is to know
    this router only, and no client connects here.
    """
    urls = ", ".join(_quote(f"nats-route://{route}") for route in routes)
    lines = [
        *_head(server_name, client_port, log_file),
        identity.auth(),
        f"ping_interval: {ping_s}s",
        "ping_max: 2",
        f"cluster {{ name: {_quote(cluster)}, listen: {_quote(listen(bind, route_port))}, pool_size: -1,"
        f" connect_retries: 1000000, no_advertise: true, {_route_tls(identity)}, routes: [ {urls} ] }}",
        f"leafnodes {{ listen: {_quote(listen('127.0.0.1', leaf_port))}, no_advertise: true, compression: off }}",
    ]
    return "\n".join(lines) + "\n"


def listen(host: str, port: int) -> str:
    """host:port, with the brackets that IPv6 needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _route_tls(identity: Identity) -> str:
    files = identity.routes
    return (
        f"tls {{ cert_file: {_quote(files.certificate)}, key_file: {_quote(files.key)},"
        f" ca_file: {_quote(files.authority)}, verify: true, insecure: true, pinned_certs: [ {_quote(files.pin)} ],"
        f" timeout: {TLS_TIMEOUT_S} }}"
    )


def _head(server_name: str, port: int, log_file: Path) -> list[str]:
    return [
        f"server_name: {_quote(server_name)}",
        f"listen: {_quote(listen('127.0.0.1', port))}",
        f"max_payload: {MAX_PAYLOAD_MIB}MiB",
        f"log_file: {_quote(log_file)}",
        "logfile_size_limit: 1MiB",
        "logfile_max_num: 2",
    ]


def _quote(value: str | Path) -> str:
    return json.dumps(str(value), ensure_ascii=False)
