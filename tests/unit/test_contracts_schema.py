"""The exported JSON Schemas are valid, and what the code sends is valid by them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from outbid_contracts.codec import Format, encode
from outbid_contracts.schema import all_schemas, request_schema, result_schema
from tests.unit.strategies import instances
from tests.unit.test_contracts_codec import TYPES
from tests.unit.test_contracts_requests import CHATTING

SCHEMAS = all_schemas()


def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]})


def test_all_schemas_are_valid_by_the_2020_12_draft() -> None:
    Draft202012Validator.check_schema(SCHEMAS)
    Draft202012Validator.check_schema(request_schema(CHATTING))
    Draft202012Validator.check_schema(result_schema(CHATTING))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(st.data())
def test_every_message_is_valid_by_its_schema(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    message = data.draw(instances(kind))

    _validator(kind.__name__).validate(json.loads(encode(message, Format.JSON)))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hi"},
        {"messages": [{"role": "user", "content": "hi"}], "stream": True, "policy": "green", "job": "mine"},
        {"prompt": "hi", "policy": {"goal": "cheap", "max_cost_usd": 0.1}, "stop": ["\n"], "json_schema": {}},
    ],
)
def test_good_requests_are_valid_by_the_schema_of_the_endpoint(body: dict[str, Any]) -> None:
    Draft202012Validator(request_schema(CHATTING)).validate(body)


@pytest.mark.parametrize("body", [{"prompt": 1}, {"prompt": "hi", "max_tokens": 0}, {"prompt": "hi", "policy": "x"}])
def test_bad_requests_are_not(body: dict[str, Any]) -> None:
    assert not Draft202012Validator(request_schema(CHATTING)).is_valid(body)
