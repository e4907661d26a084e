"""The reference: a process that answers NATS requests with what they hold, and does nothing else."""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg

from outbid_bench.loops import run


async def serve(url: str, creds: str, subject: str) -> None:
    connection = await nats.connect(url, user_credentials=creds)

    async def answer(msg: Msg) -> None:
        await connection.publish(msg.reply, msg.data)

    await connection.subscribe(subject, cb=answer)
    await connection.flush()
    print("{}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await connection.close()


if __name__ == "__main__":
    run(serve(*sys.argv[1:]))
