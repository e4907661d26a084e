"""The README promises nothing that is not there: its commands, options, make targets, extras, links and Python."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from outbid.cli.main import cli
from outbid_node.config_cli import add_flags
from outbid_node.joining.cli import parser_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DURABLE = (ROOT / "docs" / "durable-jobs.md").read_text("utf-8")
COMMANDS = sorted(
    {line.split("#")[0].strip(" $`") for line in re.findall(r"(?:^|`)\$? ?outbid [^\n`]*", README + DURABLE, re.M)}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command = cli.commands[words[0]]
    known = _options(command) if words[0] not in ("up", "config") else _flags()
    if words[0] in ("join", "leave", "creds"):
        known = set(parser_of(words[0])._option_string_actions)
    unknown = [word for word in words if word.startswith("--") and word not in known]
    assert not unknown


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(re.findall(r"outbid\[([\w-]+)\]", README)) <= project["optional-dependencies"].keys()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("text", [README, DURABLE], ids=["readme", "durable"])
def test_python_example_parses_and_uses_real_names(text: str) -> None:
    import outbid

    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    tree = ast.parse(f"async def main():\n{re.sub('^', '    ', code, flags=re.M)}")
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert imported
    assert set(imported) <= set(outbid.__all__)


def _options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def _flags() -> set[str]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return set(parser._option_string_actions)
