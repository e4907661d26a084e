"""Identifiers. Distinct types so that a type checker refuses a node id where a job id belongs."""

from __future__ import annotations

import functools
import itertools
import re
import secrets
import struct
import time
from typing import NewType

NodeId = NewType("NodeId", str)
JobId = NewType("JobId", str)
BidId = NewType("BidId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_BID_PREFIX = secrets.token_hex(4)
_bid_numbers = itertools.count(1)
_NODE = re.compile(r"[a-z0-9]{4,32}\Z")
_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def _base32(number: int, length: int) -> str:
    """`length` digits, an even number of them."""
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(5 * length - 10, -1, -10)])


def new_node_id() -> NodeId:
    """Eight random characters: a stream name, a subject token and a JetStream domain all accept them."""
    return NodeId(_base32(secrets.randbits(40), 8))


def new_job_id() -> JobId:
    """Sorts by creation time: 10 characters of Unix milliseconds, 10 random ones (the ULID idea, shortened)."""
    return JobId(_moment(time.time_ns() // 1_000_000) + _base32(_random_bits() >> 6, 10))


@functools.lru_cache(maxsize=1)
def _moment(ms: int) -> str:
    return _base32(ms, 10)


_random_words: list[int] = []


def _random_bits() -> int:
    """64 of the system's, which are fetched for many ids at once: asking for them takes longer than making the id."""
    if not _random_words:
        _random_words.extend(struct.unpack("128Q", secrets.token_bytes(1024)))
    return _random_words.pop()


def new_bid_id() -> BidId:
    """Unique within the mesh: random for each process, then counted."""
    return BidId(f"{_BID_PREFIX}{next(_bid_numbers):x}")


def is_node_id(text: str) -> bool:
    return _NODE.match(text) is not None


def is_job_id(text: str) -> bool:
    """Whether `text` may name a job: 1 to 64 of A-Z a-z 0-9 _ - (one subject token, one key)."""
    return _JOB.match(text) is not None
