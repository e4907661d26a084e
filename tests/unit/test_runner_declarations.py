"""Declarations are read from entry points; a broken one costs itself only, a doubtful one is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest

from outbid_capabilities import testing
from outbid_contracts.capability import ENTRY_POINT_GROUP, Machine
from outbid_contracts.errors import InvalidConfig
from outbid_node import declarations
from outbid_node.catalogue import Catalogue, Entry
from outbid_node.config import load
from outbid_node.doctor.look_settings import Notebook, look_at_settings
from outbid_node.estimating.speeds import Speeds

THIRD_PARTY = """
from dataclasses import replace
import msgspec
from outbid_capabilities.testing import echo

good = replace(echo, name="lab.echo")
reserved = replace(echo, name="node.echo")
one_word = replace(echo, name="echo")
shouting = replace(echo, name="Lab.Echo")
no_class = replace(echo, name="lab.other", runner="module.only")
not_one = "a string"
no_params = replace(echo, name="lab.other", params=dict)
no_schema = replace(echo, name="lab.other", result=msgspec.defstruct("Odd", [("x", object.__class__)]))
no_default = replace(echo, name="lab.other", settings=msgspec.defstruct("Must", [("key", str)]))

def several():
    return [replace(echo, name="lab.one"), replace(echo, name="lab.two.three")]

def fails():
    raise RuntimeError("no network")

def leaves():
    raise SystemExit("not on this machine")
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


BROKEN = ["reserved", "one_word", "shouting", "no_class", "not_one", "no_params", "no_schema", "no_default"]


@pytest.mark.parametrize("name", [*BROKEN, "fails", "leaves", "absent"])
def test_a_broken_entry_is_logged_and_left_out(third_party: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = declarations.load([entry(f"{third_party}:{name}"), entry("no_such_module_at_all:x"), OURS])
    assert list(found) == BUILT_IN
    assert [record.__dict__["action"] for record in caplog.records] == ["capability_broken"] * 2
    assert f"{third_party}:{name}" in caplog.text
    assert list(found.broken) == [f"lab = {third_party}:{name} (?)", "lab = no_such_module_at_all:x (?)"]


def test_an_interpreter_that_the_settings_name_wins_and_one_that_is_not_there_is_told() -> None:
    class Settings(msgspec.Struct):
        python: str | None = None

    def entry_with(python: str | None) -> Entry:
        capability = replace(testing.echo, name="lab.echo", missing=lambda settings: None, python=sys.executable)
        sections = {"lab": Settings(python=python)}
        return Catalogue({"lab.echo": capability}, sections, Speeds(), Machine()).entries["lab.echo"]

    assert (entry_with(None).capability.python, entry_with(None).missing) == (sys.executable, "")
    assert entry_with("/no/such/python").capability.python == "/no/such/python"
    assert "its interpreter /no/such/python is not there" in entry_with("/no/such/python").missing


def test_the_doctor_tells_of_a_broken_package(third_party: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declarations, "entry_points", lambda group: [entry(f"{third_party}:fails")])
    notebook = Notebook()
    logging.getLogger("outbid_node").addHandler(notebook)
    try:
        settings, _ = look_at_settings(lambda declared: (Path(), load(Path(), None, {}, {}, declared)), notebook)
    finally:
        logging.getLogger("outbid_node").removeHandler(notebook)
    (told,) = settings.warnings
    assert f"{third_party}:fails" in told
    assert "RuntimeError: no network" in told


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
