"""How much memory a model takes, how long its context may be, and how many threads it gets. Pure arithmetic."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outbid_capabilities.llm.gguf import Header

MAX_CONTEXT = 8192
"""Tokens per slot unless asked for more; trained contexts of 128 k and more would fill any memory."""

MIN_CONTEXT = 1024

CACHE_MIB = 512
"""The KV cache of all slots may take this much, or as much as the weights."""

BASE_MIB = 64
"""Interpreter, engine and buffers that do not grow: 45-60 MiB measured with either engine."""

WORK_BYTES_PER_DIM = 512 * 4 * 12
"""Compute buffer: a step of 512 tokens with about a dozen float32 activations per embedding dimension."""


def cache_bytes_per_token(header: Header) -> int:
    """Bytes of KV cache (float16) that one token of one slot takes."""
    layers = int(header.of("block_count", 0))
    heads = int(_first(header.of("attention.head_count", 1)) or 1)
    rank = header.of("attention.kv_lora_rank")
    if rank:  # latent attention keeps one compressed vector per layer
        return layers * (int(rank) + int(header.of("rope.dimension_count", 64))) * 2
    head_dim = int(header.of("embedding_length", 0)) // max(1, heads)
    width = int(header.of("attention.key_length", head_dim)) + int(header.of("attention.value_length", head_dim))
    kv_heads = header.of("attention.head_count_kv", heads)
    total = sum(map(int, kv_heads)) if isinstance(kv_heads, list) else layers * int(kv_heads)
    return total * width * 2


def context_per_slot(header: Header, slots: int, wanted: int | None) -> int:
    """Tokens per slot: what the settings want, else the trained context as far as memory stays sane."""
    trained = int(header.of("context_length", 0)) or 2048
    if wanted is not None:
        return min(wanted, trained)
    budget = max(CACHE_MIB * 2**20, header.size_bytes)
    room = budget // max(1, slots * cache_bytes_per_token(header))
    context = min(trained, MAX_CONTEXT)
    while context > room and context > MIN_CONTEXT:
        context //= 2
    return context


def memory_mib(header: Header, size_bytes: int, slots: int, context: int) -> float:
    """Resident memory once loaded: weights, KV cache of all slots, buffers."""
    work = int(header.of("embedding_length", 0)) * WORK_BYTES_PER_DIM
    return (size_bytes + slots * context * cache_bytes_per_token(header) + work) / 2**20 + BASE_MIB


def gpu_share(header: Header, gpu_layers: int) -> float:
    """The part of weights, cache and buffers that goes to the graphics card; `gpu_layers` -1 is all of it. (Where there
    is no card, or too small a one, the node counts it as the machine's own memory again.)
    """
    layers = int(header.of("block_count", 0)) + 1  # the output counts as one
    return 1.0 if gpu_layers < 0 else min(1.0, gpu_layers / layers)


def default_threads() -> int:
    """Physical cores this process may use, less one that stays free, at least one.

    With as many threads as cores, one busy neighbour stalls every layer: 10 tokens a second instead of 130 were
    measured (2 cores; docs/decisions/0002).
    """
    return max(1, physical_cores() - 1)


def physical_cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = {_siblings(cpu) for cpu in allowed}
    if "" not in siblings:
        return len(siblings)
    count = len(allowed)
    return max(1, count // 2) if platform.machine().lower() in ("x86_64", "amd64") and count > 2 else count


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return ""


def _first(value: Any) -> Any:
    return next(iter(value), None) if isinstance(value, Sequence) and not isinstance(value, str) else value
