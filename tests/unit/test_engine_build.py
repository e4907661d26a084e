"""How the compiled engine is built, and that a wheel is never used on a machine it was not made for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bootstrap
import engine

ALL = sorted(set().union(*engine.X86_SETS.values()) | {"amx_tile", "amx_int8", "amx_bf16"})
CPUINFO = "processor\t: 0\nflags\t\t: fpu avx2 fma\nbogomips: 1\n\nprocessor\t: 1\nflags\t\t: fpu\n"


@given(st.sets(st.sampled_from(ALL)))
def test_amx_is_never_built_in(features: set[str]) -> None:
    flags = engine.build_flags("Linux", "x86_64", frozenset(features))

    on = {flag for flag in flags if flag.endswith("=ON")}
    assert not any("AMX" in flag or "NATIVE" in flag for flag in on)
    assert ("-DGGML_AVX2=ON" in on) == ("avx2" in features) or not features


def test_a_set_is_on_only_where_the_processor_has_all_of_it() -> None:
    assert "-DGGML_AVX512=OFF" in engine.build_flags("Linux", "x86_64", frozenset({"avx2", "avx512f"}))
    assert "-DGGML_AVX512=ON" in engine.build_flags("Linux", "x86_64", frozenset(ALL))


@pytest.mark.parametrize("system", [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_elsewhere_the_engine_finds_the_instruction_sets_itself(system: tuple[str, str]) -> None:
    assert not any("NATIVE" in flag for flag in engine.build_flags(*system, frozenset()))


def test_features_are_those_of_the_first_processor() -> None:
    assert engine.cpu_flags(CPUINFO) == {"fpu", "avx2", "fma"}
    assert engine.cpu_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    assert engine.cpu_flags("") == frozenset()


def test_a_wheel_of_another_processor_version_or_system_is_not_found() -> None:
    made_of, _ = engine.this_machine()
    others = [made_of | {name: f"{value}x"} for name, value in made_of.items()]

    assert len({engine.folder(each) for each in [made_of, *others]}) == len(others) + 1


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert tmp_path / "outbid" / "wheels" in engine.folder(engine.this_machine()[0]).parents


def test_a_larger_set_up_serves_a_smaller_purpose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "python")
    bootstrap.PYTHON.touch()
    assert not bootstrap.is_ready("demo")

    bootstrap.stamp("test").write_text(bootstrap.fingerprint())

    assert bootstrap.is_ready("demo")
    assert bootstrap.is_ready("test")
    assert not bootstrap.is_ready("bench")


def test_a_changed_requirement_makes_a_set_up_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in bootstrap.MADE_FROM:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    before = bootstrap.fingerprint()

    (tmp_path / "constraints.txt").write_text("two")

    assert bootstrap.fingerprint() != before


def test_the_compiled_version_is_the_constrained_one() -> None:
    assert f"llama-cpp-python=={engine.VERSION}" in (engine.ROOT / "constraints.txt").read_text().splitlines()
