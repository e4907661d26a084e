"""Those who can be asked for a chat, all in the same way: through the mesh, directly, over HTTP.

Each is an `Ask`: a conversation and the most tokens to write in, an `Answer` with its times out.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from outbid import Mesh, Policy
from outbid_bench.chat_engine import GREEDY, Answer, Clock, Messages
from outbid_bench.nodes import Node
from outbid_bench.processes import Helper
from outbid_contracts import subjects
from outbid_contracts.llm import CHAT
from outbid_contracts.roles import inbox_prefix

Ask = Callable[[Messages, int], Awaitable[Answer]]


def chat_flags(engine: str, threads: int, slots: int, context: int) -> list[str]:
    """A node's settings; `context` is tokens per slot."""
    settings = {"engine": engine, "threads": threads, "slots": slots, "context": context}
    return [word for key, value in settings.items() for word in ("--set", f"llm.{key}={value}")]


def through_sdk(mesh: Mesh, *, policy: Policy | None = None) -> Ask:
    async def ask(messages: Messages, max_tokens: int) -> Answer:
        clock = Clock()
        stream = mesh.chat(messages, max_tokens=max_tokens, policy=policy, **GREEDY)
        async for chunk in stream:
            clock.piece(chunk.text)
        return clock.answer((await stream.reply()).usage.completion_tokens)

    return ask


async def through_nats(stack: AsyncExitStack, node: Node) -> Ask:
    """What `nats req --wait-for-empty mesh.llm.chat '{…, "stream": true}'` does: a bare client, JSON both ways."""
    local = await node.until_up()
    nats = importlib.import_module("nats")
    prefix = inbox_prefix(await asyncio.to_thread(Path(local.creds).read_text))
    client = await nats.connect(local.url, user_credentials=local.creds, inbox_prefix=prefix)
    stack.push_async_callback(client.close)

    async def ask(messages: Messages, max_tokens: int) -> Answer:
        clock, tokens, inbox = Clock(), None, client.new_inbox()
        replies = await client.subscribe(inbox)
        asked = {"messages": messages, "max_tokens": max_tokens, "stream": True} | GREEDY
        await client.publish(subjects.capability(CHAT), json.dumps(asked).encode(), reply=inbox)
        async for message in replies.messages:
            if not message.data:
                break
            tokens = _heard(message, clock) or tokens
        await replies.unsubscribe()
        return clock.answer(tokens)

    return ask


def _heard(message: Any, clock: Clock) -> int | None:
    """Take in one message of a stream; how many tokens it had, if it is the result."""
    if "Outbid-Error" in (message.headers or {}):
        raise RuntimeError(message.data.decode())
    event = json.loads(message.data)
    if event["event"] == "chunk":
        clock.piece(event["data"]["text"])
    return int(event["result"]["usage"]["completion_tokens"]) if event["event"] == "done" else None


async def started(stack: AsyncExitStack, folder: Path, kind: str, *arguments: object) -> Ask:
    """Of a helper process of that kind."""
    return asking(await helper(stack, folder, kind, *arguments))


async def helper(stack: AsyncExitStack, folder: Path, kind: str, *arguments: object) -> Helper:
    """A process of `chat_engine`."""
    words = (kind, *map(str, arguments))
    return await stack.enter_async_context(Helper("chat_engine", *words, log=folder / f"{kind}.log"))


def asking(helper: Helper) -> Ask:
    """An engine called directly takes one chat at a time."""
    return over_http(helper.hello["url"]) if "url" in helper.hello else directly(helper)


def directly(helper: Helper) -> Ask:
    async def ask(messages: Messages, max_tokens: int) -> Answer:
        return Answer(**await helper.ask(messages=messages, max_tokens=max_tokens))

    return ask


def over_http(url: str) -> Ask:
    """A streamed chat of OpenAI's API by hand: any HTTP library would add its own cost to the server's."""
    address = urlsplit(url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    usage = {"stream": True, "stream_options": {"include_usage": True}}

    async def ask(messages: Messages, max_tokens: int) -> Answer:
        clock, tokens = Clock(), None
        data = json.dumps({"messages": messages, "max_tokens": max_tokens} | usage | GREEDY).encode()
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        async for line in reader:
            if line.startswith(b"data: {"):
                tokens = _read(json.loads(line[6:]), clock) or tokens
        writer.close()
        return clock.answer(tokens)

    return ask


def _read(chunk: dict[str, Any], clock: Clock) -> int | None:
    """Take in one piece of a stream; how many tokens there were, if it is the last and says so."""
    for choice in chunk.get("choices", ()):
        clock.piece(choice["delta"].get("content"))
    return (chunk.get("usage") or {}).get("completion_tokens")
