"""What a type checker sees of the public API. mypy reads this with the tests; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

import outbid
from outbid import sync
from outbid_contracts.events import JobEvent
from outbid_contracts.llm import ChatChunk
from outbid_contracts.messages import JobRecord
from outbid_contracts.requests import ModelView, NodeView


async def asynchronous() -> None:
    async with outbid.Mesh() as mesh:
        assert_type(mesh, outbid.Mesh)
        assert_type(await mesh.nodes(), list[NodeView])
        assert_type(await mesh.models(), list[ModelView])
        assert_type(await mesh.run("words.count", {"text": "a"}), dict[str, Any])
        assert_type(await mesh.cancel("job"), JobRecord)
        assert_type(await mesh.sql("SELECT 1"), outbid.Table)


async def chats_and_pictures(mesh: outbid.Mesh) -> None:
    async for chunk in mesh.chat("hi", policy="green", timeout_s=3):
        assert_type(chunk, ChatChunk)
    assert_type(await mesh.chat([{"role": "user", "content": "hi"}]).reply(), outbid.Reply)
    async for step in mesh.image("a fish", steps=4):
        assert_type(step, outbid.Step)
    pictures = await mesh.image("a fish").result()
    assert_type(pictures[0], outbid.Picture)
    assert_type(await pictures[0].read(), bytes)


async def durable(mesh: outbid.Mesh) -> None:
    job = await mesh.submit("llm.chat", {"prompt": "hi"})
    assert_type(job, outbid.Job)
    assert_type(await job.result(), dict[str, Any])
    assert_type(await job.retry(), outbid.Job)
    async for event in job.watch():
        assert_type(event, JobEvent)
    assert_type(mesh.stream("llm.chat", {}), AsyncIterator[JobEvent])


async def many(mesh: outbid.Mesh) -> None:
    async for reply in mesh.map(["a", "b"]):
        assert_type(reply, outbid.Reply)
    async for done in mesh.map([{"text": "a"}], capability="words.count"):
        assert_type(done, dict[str, Any])
    async for outcome in mesh.map(["a"], ordered=False).outcomes():
        assert_type(outcome.result, outbid.Reply | None)
        assert_type(outcome.error, outbid.OutbidError | None)


async def own_nodes() -> None:
    async with (
        outbid.Mesh.start_node(settings={"llm.threads": 2}) as one,
        outbid.Mesh.start_node(beside=one) as two,
        outbid.Mesh.discover() as found,
    ):
        assert_type((one, two, found), tuple[outbid.Mesh, outbid.Mesh, outbid.Mesh])


def waiting() -> None:
    with sync.Mesh() as mesh:
        assert_type(mesh, sync.Mesh)
        assert_type(mesh.nodes(), list[NodeView])
        assert_type(mesh.run("words.count", {"text": "a"}, timeout_s=3), dict[str, Any])
        for chunk in mesh.chat("hi", policy="green", temperature=0.1):
            assert_type(chunk, ChatChunk)
        assert_type(mesh.chat("hi").reply(), outbid.Reply)
        assert_type(mesh.chat("hi").text, str)
        assert_type(mesh.image("a fish").result()[0], sync.Picture)
        assert_type(mesh.image("a fish").result()[0].read(), bytes)
        job = mesh.submit("llm.chat", {"prompt": "hi"}, priority="batch")
        assert_type(job, sync.Job)
        assert_type(job.result(timeout_s=3), dict[str, Any])
        for event in job.watch():
            assert_type(event, JobEvent)
        for reply in mesh.map(["a", "b"]):
            assert_type(reply, outbid.Reply)
        for done in mesh.map([{"text": "a"}], capability="words.count"):
            assert_type(done, dict[str, Any])
    assert_type(sync.Mesh.start_node(name="a"), sync.Mesh)


def mistakes(mesh: sync.Mesh) -> None:
    """Each is one: strict mypy complains of an `ignore` that is not needed."""
    mesh.chat()  # type: ignore[call-arg]
    mesh.nodes(limit=3)  # type: ignore[call-arg]
    mesh.run("words.count")  # type: ignore[call-arg]
    mesh.chat("hi", policy="quickest")  # type: ignore[arg-type]
    mesh.submit("llm.chat", {}, priority=3)  # type: ignore[arg-type]
    sync.Mesh.start_node(settings=["llm.threads"])  # type: ignore[arg-type]
