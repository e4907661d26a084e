"""The small parts that `outbid doctor` looks with."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from outbid_node import declarations
from outbid_node.config import load
from outbid_node.config_sections import DurableSection
from outbid_node.doctor import cli, gather, in_force, judge_machine, look_machine
from outbid_node.doctor.facts import Counters, Program
from outbid_node.doctor.look_folder import look_at_folder, time_writes
from outbid_node.doctor.look_multicast import look_at_multicast, question
from outbid_node.doctor.look_programs import greet, read_traces
from outbid_node.doctor.look_settings import Notebook
from outbid_node.power import rapl


def test_the_configuration_of_a_running_node_survives_its_journey() -> None:
    declared = declarations.load()
    config = load(Path("/nowhere"), None, {"OUTBID_LLM_MODELS": "/a,/b", "OUTBID_PORT": "4333"}, {}, declared).config
    told = msgspec.json.decode(msgspec.json.encode(in_force.told(config, declared)))
    assert in_force.restored(told, declared) == config
    assert in_force.restored({"durable": {"from_the_future": 1}}, declared).durable == DurableSection()


def test_the_command_line_of_a_frozen_node_tells_its_configuration(tmp_path: Path) -> None:
    command = ["python", "-m", "outbid_node", "up", "--mesh", "lab", "--set", "bus.port=4333", "--json"]
    asked = in_force.asked_for(command, tmp_path, declarations.load())
    assert asked is not None
    assert (asked.mesh.name, asked.bus.port) == ("lab", 4333)
    assert in_force.asked_for(["python", "host_program.py"], tmp_path, {}) is None


async def test_a_look_that_hangs_or_fails_holds_nobody_up() -> None:
    looker, hang = gather.Looker(), threading.Event()
    began = time.monotonic()
    hung, failed, worked = await asyncio.gather(
        looker.at("hangs", hang.wait, 0.2), looker.at("fails", lambda: 1 // 0, 5), looker.at("works", lambda: 7, 5)
    )
    hang.set()
    assert (hung, failed, worked) == (None, None, 7)
    assert time.monotonic() - began < 4
    assert looker.unknown["hangs"] == "it took longer than 0.2 s"
    assert looker.unknown["fails"].startswith("ZeroDivisionError")


async def test_who_speaks_on_a_port() -> None:
    async def serve(said: bytes) -> asyncio.Server:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)

        return await asyncio.start_server(talk, "127.0.0.1", 0)

    greetings = []
    for said in (b'INFO {"server_name":"x-ledger"}\r\n', b'INFO {"server_name":"y"}\r\n', b"SSH-2.0\r\n", b"INFO 3\n"):
        server = await serve(said)
        async with server:
            port = server.sockets[0].getsockname()[1]
            greetings.append(await greet(port, "x-ledger"))
    assert greetings == ["ours", "other", "other", "other"]
    assert await greet(port, "x-ledger") == "closed"


def test_a_folder_where_nothing_ever_ran_has_no_traces(tmp_path: Path) -> None:
    traces = read_traces(tmp_path)
    assert (traces.node, traces.local, traces.daemon, traces.port) == ("", None, Program(), 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_secrets_that_others_may_read_are_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "identity").mkdir(mode=0o700)
    for name in ("local.creds", "identity/node.creds", "harmless"):
        (tmp_path / name).touch(mode=0o600)
    (tmp_path / "harmless").chmod(0o644)
    assert look_at_folder(tmp_path).loose == ()
    (tmp_path / "identity" / "node.creds").chmod(0o644)
    tmp_path.chmod(0o755)
    assert look_at_folder(tmp_path).loose == ("the folder itself", "identity/node.creds")


def test_synced_writes_leave_nothing_behind(tmp_path: Path) -> None:
    writes = time_writes(tmp_path)
    assert writes.times_s
    assert not writes.refused
    assert list(tmp_path.iterdir()) == []
    assert time_writes(tmp_path / "gone").refused


def test_the_multicast_question_is_a_query_of_dns() -> None:
    asked = question(b"0123")
    assert asked[:12] == b"\0\0\0\0\0\1" + b"\0" * 6
    assert asked.endswith(b"\x040123\x0e_outbid-doctor\x04_udp\x05local\0\0\x0c\0\1")


async def test_multicast_is_tried_on_every_address() -> None:
    echoes = await look_at_multicast()
    assert "127.0.0.1" in {echo.address for echo in echoes}
    assert all(not (echo.heard and echo.error) for echo in echoes)


def test_energy_counters_are_there_or_not_and_readable_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_machine.look_at_counters(tmp_path) == Counters()
    counter = tmp_path / "sys/class/powercap/intel-rapl:0"
    counter.mkdir(parents=True)
    (counter / "name").write_text("package-0\n")
    (counter / "energy_uj").write_text("123456\n")
    assert look_machine.look_at_counters(tmp_path) == Counters(there=True, readable=True)

    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(rapl, "read", refuse)
    assert look_machine.look_at_counters(tmp_path) == Counters(there=True)


def test_a_port_that_is_taken_has_a_holder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        config = load(tmp_path, None, {"OUTBID_PORT": str(number)}, {}, {}).config
        (port,) = look_machine.look_at_ports(tmp_path, config)
        assert (port.number, port.fixed) == (number, True)
        assert port.holder
        assert look_machine.reach(f"127.0.0.1:{number}").error == ""
    assert look_machine.reach(f"127.0.0.1:{number}").error
    assert look_machine.reach("nonsense").error


def test_no_package_of_ours_is_missing_here() -> None:
    assert look_machine.look_at_software().lacking == ()
    assert look_machine.look_at_clock().year >= judge_machine.BUILT_YEAR


async def test_what_is_logged_while_looking_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, was = list(root.handlers), root.level
    try:
        options = argparse.Namespace(state=str(tmp_path), config=None, outbid_set=["llm.models=/not/there.gguf"])
        notebook = Notebook()
        logging.basicConfig(level=logging.INFO, handlers=[notebook], force=True)
        checkup = await cli.examine_here(options, notebook)
    finally:
        logging.basicConfig(level=was, handlers=before, force=True)
    assert capsys.readouterr() == ("", "")
    broken = [finding for finding in checkup.findings if "/not/there.gguf" in finding.found]
    assert [finding.level for finding in broken] == ["problem"]
