"""Reading and writing at a place in a file, from several threads at once; Windows has no `pread`."""

from __future__ import annotations

import os
import threading

_one_at_a_time = threading.Lock()

if hasattr(os, "pread"):

    def read(handle: int, length: int, offset: int) -> bytes:
        return os.pread(handle, length, offset)

    def write(handle: int, data: memoryview, offset: int) -> int:
        return os.pwrite(handle, data, offset)

else:

    def read(handle: int, length: int, offset: int) -> bytes:
        with _one_at_a_time:
            os.lseek(handle, offset, os.SEEK_SET)
            return os.read(handle, length)

    def write(handle: int, data: memoryview, offset: int) -> int:
        with _one_at_a_time:
            os.lseek(handle, offset, os.SEEK_SET)
            return os.write(handle, data)
