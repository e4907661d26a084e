"""A bad cable between a host and its switch, for kernels without netem: frames are late, and some are lost.

The one argument is JSON: `here` and `there` name the two TAP devices, `there` goes to `namespace`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import struct
import subprocess
import sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LONGEST = 65536


def tap(name: str) -> int:
    """The file whose reads and writes are the frames of a new network card."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def carry(source: int, sink: int, delay_s: float, loss: float) -> None:
    loop = asyncio.get_running_loop()

    def deliver(frame: bytes) -> None:
        with contextlib.suppress(OSError):  # the other end is down
            os.write(sink, frame)

    def arrived() -> None:
        with contextlib.suppress(OSError):
            frame = os.read(source, LONGEST)
            if random.random() >= loss:
                loop.call_later(delay_s, deliver, frame)

    loop.add_reader(source, arrived)


async def main(here: str, there: str, namespace: str, delay_s: float, loss: float) -> None:
    switch_end, host_end = tap(here), tap(f"{here}x")
    subprocess.run(["ip", "link", "set", f"{here}x", "name", there, "netns", namespace], check=True)
    carry(switch_end, host_end, delay_s, loss)
    carry(host_end, switch_end, delay_s, loss)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
