"""Which node has read the beginning of a job already, so that its bid need not count that.

What a job reads (`Capability.reads`) is named by a chain of digests, one for each beginning that ends with a piece: two
jobs have a digest in common just if they begin alike up to there. vLLM names the blocks of its KV cache so ("Automatic
Prefix Caching" in its documentation). docs/decisions/0021 has the reasons, and what other routers do.

The owner sends the chain along with its call for proposals; who bids compares it with what its runner says it keeps. It
is keyed with a secret of the mesh: whoever may listen on the bus but is no node cannot try out what was said.
"""

from __future__ import annotations

import logging
import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from outbid_contracts.capability import Capability, Reading
from outbid_contracts.ids import NodeId
from outbid_contracts.messages import Work
from outbid_contracts.runner import Kept

log = logging.getLogger(__name__)

SIZE = 8
"""Bytes of a digest: two of a billion differing ones are alike with a chance of 3 %, and then a bid is off."""

SENT, HELD = 16, 256
"""Digests of one job at most, on the bus and in memory: the first, which a system prompt ends with, and the last, where
conversations go on or are forked.
"""

REMEMBERED = 1024
"""Jobs of which an owner remembers who read them."""


class Chain(NamedTuple):
    """`amounts`: of the unit, up to each digest, from the shortest beginning."""

    unit: str
    amounts: dict[bytes, float]

    def last(self, most: int) -> Chain:
        """Without the middle, if it is longer."""
        if len(self.amounts) <= most:
            return self
        first, *others = self.amounts.items()
        return Chain(self.unit, dict([first, *others[1 - most :]]))


class Prefixes:
    """Names what jobs read. All nodes of a mesh must have the same `key`."""

    def __init__(self, key: bytes = b"") -> None:
        self._hash = blake2b(key=key, digest_size=SIZE)

    def of(self, capability: Capability, params: Any) -> bytes:
        """`Job.prefix`, for validated params; empty if no cache can help."""
        if capability.reads is None:
            return b""
        reading = _reading(capability, params, None)
        if reading is None or reading.anew:
            return b""
        return b"".join(self.chain(capability.name, reading).last(SENT).amounts)

    def read(self, capability: Capability, params: dict[str, Any], result: Mapping[str, Any] | None) -> Chain:
        """What a runner has read of a job, and written if it has a result."""
        if capability.reads is None:
            return Chain("", {})
        reading = _reading(capability, params, result)
        return self.chain(capability.name, reading).last(HELD) if reading is not None else Chain("", {})

    def chain(self, salt: str, reading: Reading) -> Chain:
        """About 1 us for each piece and for each KB."""
        rolling, amounts, amount = self._hash.copy(), dict[bytes, float](), 0.0
        rolling.update(salt.encode() + b"\0")
        for text, more in reading.pieces:
            data = text.encode(errors="surrogatepass")
            rolling.update(struct.pack("<Q", len(data)) + data)
            amount += more
            amounts[rolling.digest()] = amount
        return Chain(reading.unit, amounts)


class PrefixCache:
    """What one runner keeps of the jobs it did: a chain for each of its slots. It is gone when its process is."""

    def __init__(self, slots: int) -> None:
        self._slots: list[Chain | None] = [None] * slots

    def note(self, kept: Kept, chain: Chain) -> None:
        if 0 <= kept.slot < len(self._slots):
            self._slots[kept.slot] = chain if kept.whole and chain.amounts else None

    def held(self, prefix: bytes) -> Work:
        """How much of it some slot begins with; empty if none does."""
        chains = [chain for chain in self._slots if chain is not None]
        for digest in _longest_first(prefix) if chains else ():
            for unit, amounts in chains:
                if digest in amounts:
                    return {unit: amounts[digest]}
        return {}


class Holders:
    """Whom this owner awarded jobs that began so: who is to be asked, beside the others. What is still held there, it
    says itself.
    """

    def __init__(self) -> None:
        self._nodes: OrderedDict[bytes, NodeId] = OrderedDict()

    def note(self, prefix: bytes, node: NodeId) -> None:
        whole = prefix[-SIZE:]
        self._nodes[whole] = node
        self._nodes.move_to_end(whole)
        if len(self._nodes) > REMEMBERED:
            self._nodes.popitem(last=False)

    def find(self, prefix: bytes) -> NodeId | None:
        """Where most of it was read, the last time."""
        found = (self._nodes.get(digest) for digest in _longest_first(prefix))
        return next((node for node in found if node is not None), None)


def work_done(work: Work, expected: Work, kept: Kept) -> Work:
    """The work of a job without what its runner held, as far as its node knew that and left it out of the `expected`.
    An estimator that took the whole of it for done would learn that reading is quick. What a runner reuses beyond that
    (the opening that a model's template puts before every chat) it reuses of the next jobs, too: that is its speed.
    """
    shares = {unit: share for unit, share in kept.reused.items() if 0.0 < share <= 1.0}
    return {unit: max(expected.get(unit, 0.0), amount * (1 - shares.get(unit, 0.0))) for unit, amount in work.items()}


def _longest_first(prefix: bytes) -> Iterator[bytes]:
    whole = len(prefix) - len(prefix) % SIZE
    return (prefix[end - SIZE : end] for end in range(whole, 0, -SIZE))


def _reading(capability: Capability, params: Any, result: Mapping[str, Any] | None) -> Reading | None:
    """`params` validated, or the map of them."""
    assert capability.reads is not None
    try:
        known = msgspec.convert(params, capability.params) if isinstance(params, dict) else params
        return capability.reads(known, result)
    except Exception:  # third-party code
        log.exception("%s cannot say what it reads", capability.name, extra={"action": "reads_failed"})
        return None
