"""`--param key=value`: the declared type decides what a word means, so text stays text and numbers are numbers."""

from __future__ import annotations

from typing import Any

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid.cli.params import read
from outbid_contracts.capability import Capability
from outbid_contracts.llm import CHAT, ChatParams, ChatResult
from outbid_contracts.schema import request_schema

CHATTING = request_schema(
    Capability(name=CHAT, summary="", params=ChatParams, result=ChatResult, runner="nowhere:Runner")
)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("max_tokens=8", 8),
        ("temperature=0.7", 0.7),
        ("temperature=1", 1),
        ("seed=0", 0),
        ("prompt=8", "8"),
        ("prompt=true", "true"),
        ("prompt=null", "null"),
        ('prompt={"a": 1}', '{"a": 1}'),
        ("prompt=", ""),
        ("prompt=a=b", "a=b"),
        ("prompt=two\nlines", "two\nlines"),
        ("stop=END", "END"),
        ("stop=7", "7"),
        ('stop=["a", "b"]', ["a", "b"]),
        ("stop=[a", "[a"),
        ('json_schema={"type": "object"}', {"type": "object"}),
        ('messages=[{"role": "user", "content": "hi"}]', [{"role": "user", "content": "hi"}]),
        ("prompt:=8", 8),
        ("max_tokens:=8.5", 8.5),
    ],
)
def test_the_declared_type_decides(word: str, value: Any) -> None:
    (found,) = read([word], CHATTING).values()

    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("max_tokens=eight", "max_tokens must be a whole number, not 'eight'"),
        ("max_tokens=8.5", "max_tokens must be a whole number"),
        ("max_tokens=true", "max_tokens must be a whole number"),
        ("temperature=NaN", "temperature must be a number"),
        ("json_schema=[]", "json_schema must be a JSON object"),
        ("max_token=8", "there is no max_token; did you mean max_tokens"),
        ("zzz=8", "there is no zzz; known are prompt, messages"),
        ("max_tokens", "'max_tokens' is not key=value"),
        ("=8", "'=8' is not key=value"),
        ("prompt:=hi", "prompt:=hi is not JSON; text is written prompt="),
        ("job=mine", "job is not a parameter; name the job with --job"),
        ("policy=green", "policy is not a parameter; use --policy"),
        ("stream=true", "stream is not a parameter"),
        ("prompt=\udcff", "is not UTF-8"),
    ],
)
def test_a_wrong_word_is_refused_with_a_sentence(word: str, message: str) -> None:
    with pytest.raises(click.BadParameter) as error:
        read([word], CHATTING)

    assert message in error.value.message


def test_a_parameter_is_given_once() -> None:
    with pytest.raises(click.BadParameter, match="seed is given twice"):
        read(["seed=1", "seed=2"], CHATTING)


@pytest.mark.parametrize(
    ("word", "value"),
    [("a=8", 8), ("a=8.5", 8.5), ("a=true", True), ("a=[1]", [1]), ("a=hello", "hello"), ("a=", ""), ("a=01", "01")],
)
def test_without_a_schema_a_value_is_json_if_it_reads_as_json(word: str, value: Any) -> None:
    assert read([word], None) == {"a": value}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({}, "8", 8),
        ({}, "x", "x"),
        ({"type": ["string", "integer"]}, "8", "8"),
        ({"enum": ["a", "b"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"$ref": "#/$defs/Size"}, "8", 8),
        ({"oneOf": [{"$ref": "#/$defs/Size"}, {"type": "null"}]}, "null", None),
        ({"type": "boolean"}, "false", False),
    ],
)
def test_every_way_of_declaring_a_type_is_understood(schema: dict[str, Any], text: str, value: Any) -> None:
    whole = {"properties": {"a": schema}, "$defs": {"Size": {"type": "integer"}}}

    assert read([f"a={text}"], whole) == {"a": value}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reaches_a_text_parameter_unchanged(text: str) -> None:
    assert read([f"prompt={text}"], CHATTING) == {"prompt": text}


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(), st.lists, max_leaves=5))
def test_any_json_reaches_any_parameter_unchanged(value: Any) -> None:
    assert read([f"any:={msgspec.json.encode(value).decode()}"], None) == {"any": value}
