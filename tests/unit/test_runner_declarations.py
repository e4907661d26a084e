"""Declarations are read from entry points; a broken one costs itself only, a doubtful one is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from outbid_capabilities import testing
from outbid_contracts.capability import ENTRY_POINT_GROUP
from outbid_contracts.errors import InvalidConfig
from outbid_node import declarations

THIRD_PARTY = """
from dataclasses import replace
from outbid_capabilities.testing import echo

good = replace(echo, name="lab.echo")
reserved = replace(echo, name="node.echo")
one_word = replace(echo, name="echo")
shouting = replace(echo, name="Lab.Echo")
no_class = replace(echo, name="lab.other", runner="module.only")
not_one = "a string"

def several():
    return [replace(echo, name="lab.one"), replace(echo, name="lab.two.three")]

def fails():
    raise RuntimeError("no network")
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "third_party_lab.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "third_party_lab"


def entry(value: str, name: str = "lab") -> EntryPoint:
    return EntryPoint(name, value, ENTRY_POINT_GROUP)


OURS = entry("outbid_capabilities.testing:capabilities", "test")
BUILT_IN = sorted(capability.name for capability in testing.capabilities())


def test_an_entry_is_a_capability_or_a_function_that_returns_several(third_party: str) -> None:
    found = declarations.load([OURS, entry(f"{third_party}:good"), entry(f"{third_party}:several")])
    assert list(found) == ["lab.echo", "lab.one", "lab.two.three", *BUILT_IN]


@pytest.mark.parametrize("name", ["reserved", "one_word", "shouting", "no_class", "not_one", "fails", "absent"])
def test_a_broken_entry_is_logged_and_left_out(third_party: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = declarations.load([entry(f"{third_party}:{name}"), entry("no_such_module_at_all:x"), OURS])
    assert list(found) == BUILT_IN
    assert [record.__dict__["action"] for record in caplog.records] == ["capability_broken"] * 2
    assert f"{third_party}:{name}" in caplog.text


def test_two_entries_with_one_name_are_refused(third_party: str) -> None:
    again = entry("outbid_capabilities.testing:echo", "again")
    with pytest.raises(InvalidConfig, match=r"'test\.echo' is declared by both test = .* and again = .*; uninstall"):
        declarations.load([OURS, again])


def test_test_capabilities_are_offered_only_when_switched_on() -> None:
    for capability in testing.capabilities():
        assert "switched off" in (capability.missing({}) or "")
        assert "switched off" in (capability.missing({"enabled": False}) or "")
        assert capability.missing({"enabled": True}) is None


def test_reading_declarations_imports_no_runner() -> None:
    code = (
        "import sys; from outbid_node import declarations; from importlib.metadata import EntryPoint; "
        f"declarations.load([EntryPoint('test', {OURS.value!r}, '')]); "
        "print('outbid_capabilities.testing.runner' in sys.modules, 'zmq' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
