"""Plain HTTP beside the mesh: a process that streams tokens as server-sent events and gives a file, by aiohttp.

python -m outbid_bench.http_side FILE
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import msgspec
from aiohttp import web

from outbid_bench.loops import run

EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


async def tokens(request: web.Request) -> web.StreamResponse:
    """`count` pieces of `text`, `delay_s` apart (0: at full speed), as `test.echo` makes them."""
    asked = request.query
    count, delay_s, text = int(asked["count"]), float(asked["delay_s"]), asked["text"]
    response = web.StreamResponse(headers=EVENTS)
    await response.prepare(request)
    for n in range(count):
        if delay_s:
            await asyncio.sleep(delay_s)
        piece = msgspec.json.encode({"text": text, "n": n, "mono_ns": time.monotonic_ns()})
        await response.write(b"data: " + piece + b"\n\n")
    await response.write_eof()
    return response


async def serve(file: str) -> None:
    app = web.Application()
    app.router.add_get("/tokens", tokens)
    app.router.add_get("/file", lambda request: _file(file))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


async def _file(path: str) -> web.FileResponse:
    """By `sendfile`."""
    return web.FileResponse(path)


if __name__ == "__main__":
    run(serve(sys.argv[1]))
