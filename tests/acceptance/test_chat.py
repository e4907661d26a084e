"""Real chats with the real default model, through real daemons, by SDK and by command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from outbid import OutbidError
from outbid_contracts.errors import ContextOverflow, InvalidRequest, UnknownModel
from outbid_contracts.events import AttemptLost, Awarded, JobEvent
from tests.fleet import NodeProcess, fleet, mesh_of

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeProcess]:
    """One node with the default model loaded."""
    with fleet(tmp_path_factory.mktemp("chat")) as running:
        (alone,) = await running.start("alone", flags=())
        async with mesh_of(alone) as mesh:
            await mesh.chat("Say hello.", max_tokens=4).reply()
        yield alone


async def test_chat_streams_and_ends_with_the_whole_reply(node: NodeProcess) -> None:
    async with mesh_of(node) as mesh:
        stream = mesh.chat("Count from one to ten.", max_tokens=24, temperature=0)
        pieces = [chunk.text async for chunk in stream]
        reply = await stream.reply()
    assert len(pieces) > 5
    assert "".join(pieces) == reply.text
    assert reply.usage.completion_tokens == 24
    assert reply.finish_reason == "length"
    assert reply.name == "alone"
    assert reply.timings["tokens_per_s"] > 0


async def test_eight_chats_at_once_do_not_mix(node: NodeProcess) -> None:
    schemas = [{"type": "object", "properties": {"n": {"const": i}}, "required": ["n"]} for i in range(8)]
    async with mesh_of(node) as mesh:
        replies = await asyncio.gather(
            *(mesh.chat("Give me a number.", json_schema=schema, max_tokens=32).reply() for schema in schemas)
        )
    assert [json.loads(reply.text) for reply in replies] == [{"n": i} for i in range(8)]


async def test_leaving_the_stream_cancels_the_job(node: NodeProcess) -> None:
    async with mesh_of(node) as mesh:
        async with mesh.chat("Write a very long story.", max_tokens=1500) as stream:
            async for _ in stream:
                break
        record = await mesh.job(stream.job)
    assert record.state == "cancelled"


async def test_bad_requests_are_refused_with_what_to_do(node: NodeProcess) -> None:
    async with mesh_of(node) as mesh:
        with pytest.raises(InvalidRequest, match="`prompt` is empty"):
            await mesh.chat("  ").reply()
        with pytest.raises(UnknownModel, match="smollm2-135m-instruct"):
            await mesh.chat("hi", model="gpt-9").reply()
        with pytest.raises(ContextOverflow, match="tokens"):
            await mesh.chat("word " * 20_000, max_tokens=8).reply()
        with pytest.raises(InvalidRequest):
            await mesh.chat("hi", json_schema={"type": "no such type"}).reply()
        with pytest.raises(OutbidError, match="MiB"):
            await mesh.chat("x" * (10 * 2**20)).reply()
        assert (await mesh.chat("Say hello.", max_tokens=4).reply()).text


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_native_crash_of_the_engine_costs_a_pause_not_the_answer(node: NodeProcess, number: int) -> None:
    events: list[JobEvent] = []
    async with mesh_of(node) as mesh:
        stream = mesh.chat("Count to one hundred.", max_tokens=48, temperature=0, on_event=events.append)
        async for _ in stream:
            if not events or len(events) == 1:
                os.kill(_runner(node).pid, number)
                break
        reply = await stream.reply()
    assert reply.usage.completion_tokens == 48
    assert reply.attempt == 2
    assert [type(event) for event in events if isinstance(event, (Awarded, AttemptLost))] == [
        Awarded,
        AttemptLost,
        Awarded,
    ]
    lost = next(event for event in events if isinstance(event, AttemptLost))
    assert signal.Signals(number).name in lost.error.message


async def test_command_line_chat_ends_with_job_node_and_text(node: NodeProcess) -> None:
    lines = _outbid(node, "chat", "Say hello.", "--max-tokens", "6", "--json").stdout.splitlines()
    last = json.loads(lines[-1])
    assert last["event"] == "done"
    assert {"job", "node", "text"} <= last.keys()
    assert "".join(json.loads(line)["text"] for line in lines if '"chunk"' in line) == last["text"]
    sheet = json.loads(_outbid(node, "why", last["job"], "--json").stdout)
    assert sheet["winner"] == last["node"]
    assert len(sheet["bids"]) == 1
    assert sheet["declines"] == []
    jobs = json.loads(_outbid(node, "jobs", "--json").stdout)
    assert jobs[0]["id"] == last["job"]
    models = json.loads(_outbid(node, "models", "--json").stdout)
    chatting = [(m["model"], m["warm"]) for m in models if m["capability"] == "llm.chat"]
    assert chatting == [("smollm2-135m-instruct", True)]


async def test_command_line_tables_are_readable(node: NodeProcess) -> None:
    chat = _outbid(node, "chat", "Say hello.", "--max-tokens", "6")
    assert chat.stdout.strip()
    assert "outbid why" in chat.stderr
    job = json.loads(_outbid(node, "jobs", "--limit", "1", "--json").stdout)[0]["id"]
    assert "alone" in _outbid(node, "nodes").stdout
    assert "finish" in _outbid(node, "why", job).stdout


async def test_command_line_says_what_to_do_when_no_node_runs(tmp_path: Path) -> None:
    done = _run("chat", "hi", "--state", str(tmp_path / "nowhere"))
    assert done.returncode == 3
    assert "outbid up" in done.stderr
    assert _run("chat", "hi", "--polcy", "green").returncode == 2
    assert _run("version").returncode == 0


async def test_interrupting_the_command_line_cancels_the_job(node: NodeProcess) -> None:
    environment = {**os.environ, "OUTBID_STATE": str(node.state)}
    command = [sys.executable, "-m", "outbid", "chat", "Write a long story.", "--max-tokens", "1500", "--job", "ctrl-c"]
    chat = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert chat.stdout is not None
    await asyncio.to_thread(chat.stdout.read, 10)
    chat.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(chat.wait, 20) == 130
    async with mesh_of(node) as mesh:
        assert (await mesh.job("ctrl-c")).state == "cancelled"


async def test_a_broken_model_file_costs_its_model_not_the_node(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with fleet(tmp_path) as running:
        (a,) = await running.start("a", flags=("--set", f"llm.models={broken}"))
        async with mesh_of(a) as mesh:
            with pytest.raises(OutbidError, match="broken"):
                await mesh.chat("hi", model="broken", max_tokens=4).reply()
            assert (await mesh.chat("Say hello.", max_tokens=4).reply()).model == "smollm2-135m-instruct"


async def test_too_little_memory_is_named_with_the_figures(tmp_path: Path) -> None:
    with fleet(tmp_path) as running:
        (a,) = await running.start("a", flags=("--set", "limits.memory_mib=50"))
        async with mesh_of(a) as mesh:
            with pytest.raises(OutbidError, match=r"a: needs .* MiB, the budget is 50 MiB"):
                await mesh.chat("hi", max_tokens=4).reply()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root to mount a small tmpfs")
async def test_a_full_disk_under_the_ledger_stops_no_chat(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=True)
    try:
        with fleet(small) as running:
            a = NodeProcess(small / "a", "a", running.mesh, [])
            a.log = tmp_path / "a.log"
            running.nodes.append(a)
            a.spawn()
            await a.until_up()
            async with mesh_of(a) as mesh:
                assert (await mesh.chat("Say hello.", max_tokens=4).reply()).text
                (view,) = await mesh.nodes()
            assert any("durable storage is off" in trouble for trouble in view.presence.trouble)
            assert "free" in view.presence.trouble[0]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _runner(node: NodeProcess) -> psutil.Process:
    children = psutil.Process(node.pid).children(recursive=True)
    return next(child for child in children if "runner_kit" in " ".join(child.cmdline()))


def _outbid(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = _run(*arguments, "--state", str(node.state))
    assert done.returncode == 0, done.stderr
    return done


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outbid", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
