"""`outbid doctor` beside real nodes: healthy ones, and ones that were hurt in the usual ways."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from outbid_contracts.doctor import Checkup, DoctorReply, Finding
from tests.fleet import TEST_CAPABILITY, Fleet, NodeProcess, eventually, fleet

PROMISED_S = 6.0
START_S = 9.0
"""To start two interpreters, one after the other, on a machine that does a lot else."""

root_only = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="needs root, on a Unix")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as running:
        yield running


def run(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
    environment |= {"OUTBID_KEYRING": str(node.state.with_name("keyring"))}
    command = [sys.executable, "-m", "outbid", "doctor", "--state", str(node.state), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=PROMISED_S + START_S
    )


def examined(node: NodeProcess, *arguments: str) -> tuple[int, Checkup]:
    """The exit code, and the checkup of the machine itself."""
    done = run(node, "--json", *arguments)
    assert done.stdout, done.stderr
    reply = msgspec.json.decode(done.stdout, type=DoctorReply)
    assert done.stderr == ""
    assert reply.healthy == (done.returncode == 0)
    return done.returncode, reply.checkups[0]


def of(checkup: Checkup, check: str) -> Finding:
    """The worst finding of one check."""
    order = ("problem", "warning", "note", "ok")
    found = [finding for finding in checkup.findings if finding.check == check]
    assert found, [finding.check for finding in checkup.findings]
    return min(found, key=lambda finding: order.index(finding.level))


def problems(checkup: Checkup) -> list[str]:
    return [finding.check for finding in checkup.findings if finding.level == "problem"]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ledger_pid(node: NodeProcess) -> int:
    return int(json.loads((node.state / "bus" / "ledger.pid").read_text())["pid"])


def down(nodes: Fleet) -> NodeProcess:
    """A node that has never run."""
    return NodeProcess(nodes.folder / "a", "a", nodes.mesh, ())


async def test_a_healthy_mesh_is_said_to_be_healthy(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    code, checkup = examined(a)
    assert (code, checkup.name, checkup.node, problems(checkup)) == (0, "a", a.local.node, [])
    for check in ("configuration", "node", "ledger", "durable jobs", "nats-server", "state folder", "mesh key"):
        assert of(checkup, check).level == "ok"
    for check in ("router", "other machines", "versions", "clocks"):
        assert of(checkup, check).level == "ok"
    assert of(checkup, "keeper").level == "note"
    shown = run(a).stdout
    assert f"a  {a.local.node}  {a.state}" in shown
    assert "answers on port" in shown

    done = run(a, "--json", "--mesh")
    reply = msgspec.json.decode(done.stdout, type=DoctorReply)
    assert [it.name for it in reply.checkups] == ["a", "b"], done.stdout
    assert reply.checkups[1].node == b.local.node
    assert of(reply.checkups[1], "node").level == "ok"
    assert not a.lines("endpoint_failed")


async def test_a_machine_that_is_not_there_cannot_be_examined(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    code, checkup = examined(a, "--node", "nobody")
    assert (code, problems(checkup)) == (1, ["node"])
    assert "no such machine" in checkup.findings[0].found
    assert examined(a, "--node", "a")[1].node == a.local.node, "a node may be asked to examine itself"


async def test_a_node_that_never_ran_stopped_or_was_killed(nodes: Fleet) -> None:
    code, checkup = examined(down(nodes))
    assert (code, problems(checkup)) == (1, ["node"])
    assert of(checkup, "node").remedy == "Start it with `outbid up`."
    assert not (nodes.folder / "a").exists(), "looking makes nothing"

    (a,) = await nodes.start("a")
    a.stop()
    assert of(examined(a)[1], "node").found == "it does not run"
    a.spawn()
    await a.until_up()
    a.kill()
    code, checkup = examined(a)
    assert (code, problems(checkup)) == (1, ["node"])
    assert "without saying goodbye" in of(checkup, "node").found


async def test_a_frozen_ledger_is_named_and_does_not_freeze_the_doctor(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    pid = ledger_pid(a)
    with stopped(pid):
        code, checkup = examined(a)
    assert (code, problems(checkup)) == (1, ["ledger"])
    assert of(checkup, "ledger").remedy == f"Let it go on with `kill -CONT {pid}`."
    assert checkup.took_s < PROMISED_S


async def test_a_frozen_daemon_is_named_and_does_not_freeze_the_doctor(nodes: Fleet) -> None:
    a, b = await nodes.start("a", "b")
    with stopped(a.pid):
        code, checkup = examined(a)
        assert (code, problems(checkup)) == (1, ["node"])
        assert of(checkup, "node").found == f"its daemon (pid {a.pid}) is suspended"
        assert of(checkup, "ledger").level == "ok"
        assert nodes.mesh in of(checkup, "mesh key").found, "its command line says how it was configured"
        assert checkup.took_s < PROMISED_S
        assert run(b, "--node", "a").returncode == 1


@root_only
async def test_a_disk_that_is_nearly_full(nodes: Fleet) -> None:
    state = nodes.folder / "a"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(state)], check=True)
    try:
        (a,) = await nodes.start("a")
        assert of(examined(a)[1], "disk space").level == "warning"
        free = os.statvfs(state).f_bavail * os.statvfs(state).f_frsize
        (state / "filler").write_bytes(b"\0" * (free - 8 * 2**20))

        def said() -> bool:
            code, checkup = examined(a)
            assert code == 1
            assert of(checkup, "disk space").level == "problem"
            return "the disk is nearly full" in of(checkup, "durable jobs").found

        await eventually(said, 60, "the node does not say that its disk is full")
        (state / "filler").unlink()
    finally:
        nodes.close()
        subprocess.run(["umount", str(state)], check=True)


async def test_a_port_that_another_program_has(nodes: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, checkup = examined(down(nodes), "--set", f"bus.port={port}")
    assert (code, set(problems(checkup))) == (1, {"node", "ports"})
    assert f"(pid {os.getpid()})" in of(checkup, "ports").found


async def test_a_configuration_with_a_mistake(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    (a.state / "config.toml").write_text('[llm]\nmodles = ["/x.gguf"]\n')
    code, checkup = examined(a)
    assert (code, problems(checkup)) == (1, ["configuration"])
    assert "did you mean llm.models?" in of(checkup, "configuration").found
    assert of(checkup, "node").level == "ok", "it still runs with what it read"


async def test_a_model_that_does_not_exist(nodes: Fleet) -> None:
    missing = nodes.folder / "missing.gguf"
    (a,) = await nodes.start("a", flags=(*TEST_CAPABILITY, "--set", f"llm.models={missing}"))
    code, checkup = examined(a)
    assert (code, problems(checkup)) == (1, ["llm.chat"])
    assert str(missing) in of(checkup, "llm.chat").found


@root_only
async def test_a_state_folder_of_two_users(nodes: Fleet) -> None:
    (a,) = await nodes.start("a")
    creds = a.state / "local.creds"
    creds.chmod(0o644)
    found = of(examined(a)[1], "state folder")
    assert (found.level, "local.creds" in found.found) == ("warning", True)
    os.chown(a.state / "speeds.json" if (a.state / "speeds.json").exists() else creds, 12345, -1)
    code, checkup = examined(a)
    assert (code, problems(checkup)) == (1, ["state folder"])


async def test_two_who_ask_at_once_get_the_same_examination(nodes: Fleet) -> None:
    a, b, c = await nodes.start("a", "b", "c")
    both = await asyncio.gather(*(asyncio.to_thread(examined, node, "--node", "b") for node in (a, c)))
    assert [checkup.node for _, checkup in both] == [b.local.node] * 2
