"""`outbid config` and the flags that set keys."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from outbid_contracts.errors import InvalidConfig
from outbid_node.config import Given, keys, load, sections
from outbid_node.config_cli import FLAGS, add_flags, as_text, flags_from, main_config, rows
from tests.unit.test_config import TOY


@pytest.fixture(autouse=True)
def _no_user_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "nobody")


def _flags(*argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return flags_from(parser.parse_args(argv))


def test_every_flag_sets_a_key_that_exists() -> None:
    assert {flag.key for flag in FLAGS} <= keys(sections({})).keys()


def test_flags_are_taken_by_key_with_the_word_that_was_typed() -> None:
    found = _flags(
        "--name", "b", "--mesh", "lab", "--peer", "a:1", "--peer", "b:2", "--port", "4222", "--route-port", "auto",
        "--log-level", "debug", "--json-logs", "--set", "limits.max_attempts=2", "--set", "toy.engine=fast",
    )  # fmt: skip

    assert found == {
        "node.name": Given("b", "--name"),
        "mesh.name": Given("lab", "--mesh"),
        "mesh.peers": Given(["a:1", "b:2"], "--peer"),
        "bus.port": Given("4222", "--port"),
        "bus.route_port": Given("auto", "--route-port"),
        "log.level": Given("debug", "--log-level"),
        "log.json": Given("true", "--json-logs"),
        "limits.max_attempts": Given("2", "--set limits.max_attempts"),
        "toy.engine": Given("fast", "--set toy.engine"),
    }


def test_flags_that_were_not_typed_set_nothing() -> None:
    assert _flags() == {}


def test_set_wins_over_the_flag_of_its_own() -> None:
    assert _flags("--set", "bus.port=5", "--port", "4")["bus.port"].value == "5"


def test_a_value_may_hold_an_equals_sign() -> None:
    assert _flags("--set", "toy.token=a=b")["toy.token"].value == "a=b"


def test_set_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"--set bus\.port lacks a value; write --set section\.key=value"):
        _flags("--set", "bus.port")


def test_the_table_shows_every_key_and_its_source(tmp_path: Path) -> None:
    effective = load(tmp_path, None, {"OUTBID_TOY_THREADS": "3", "OUTBID_TOY_TOKEN": "hush"}, {}, TOY)

    table = as_text(rows(effective, TOY), tmp_path, effective)

    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    assert lines["toy.threads"] == ["3", "OUTBID_TOY_THREADS"]
    assert lines["bus.port"] == ['"auto"', "default"]
    assert effective.sources.keys() <= lines.keys()
    assert "hush" not in table, "a secret was printed"


def test_json_has_key_value_source_and_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbid_node.declarations.load", lambda: TOY)

    assert main_config(["--json", "--state", str(tmp_path), "--port", "4222"]) == 0

    told = json.loads(capsys.readouterr().out)
    port = next(row for row in told["settings"] if row["key"] == "bus.port")
    assert (told["state"], told["file"]) == (str(tmp_path), None)
    assert (port["value"], port["source"], port["variable"]) == (4222, "--port", "OUTBID_BUS_PORT")
    assert "from 1 to 65535" in port["allowed"]


def test_a_wrong_configuration_is_told_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_config(["--state", str(tmp_path), "--set", "bus.port=x"]) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert "outbid config: bus.port cannot be 'x' (--set bus.port); allowed:" in told.err
