"""The request envelope: what a person types is checked, what a newer program says is tolerated."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.capability import Capability
from outbid_contracts.codec import Format, encode
from outbid_contracts.errors import InvalidRequest, PayloadTooLarge
from outbid_contracts.llm import CHAT, ChatChunk, ChatParams, ChatResult
from outbid_contracts.policy import GOALS, Policy
from outbid_contracts.requests import MAX_REQUEST_BYTES, Request, parse_request
from tests.unit.strategies import PLAIN

CHATTING = Capability(
    name=CHAT,
    summary="chat",
    params=ChatParams,
    result=ChatResult,
    chunk=ChatChunk,
    runner="nowhere:Runner",
    text_field="prompt",
)


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    pass


MUTE = Capability(name="test.mute", summary="takes no text", params=Nothing, result=Nothing, runner="nowhere:Runner")
KEYS = [*ChatParams.__struct_fields__, "stream", "policy", "job", "v", "x"]


def _parse(body: Any, format: Format = Format.JSON) -> Request:
    return parse_request(encode(body, format), CHATTING, format)


def test_bare_text_is_the_prompt() -> None:
    request = parse_request(b"why is the sky blue?", CHATTING, Format.TEXT)

    assert request == Request(params=ChatParams(prompt="why is the sky blue?"))


@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_the_envelope_is_taken_apart(format: Format) -> None:
    body = {"prompt": "hi", "max_tokens": 3, "stream": True, "job": "mine", "policy": {"goal": "green", "avoid": ["b"]}}

    request = _parse(body, format)

    assert request.params == ChatParams(prompt="hi", max_tokens=3)
    assert (request.stream, request.job) == (True, "mine")
    assert request.policy == Policy(goal="green", avoid=("b",))


@pytest.mark.parametrize("goal", GOALS)
def test_a_goal_alone_is_a_policy(goal: str) -> None:
    assert _parse({"prompt": "hi", "policy": goal}).policy == msgspec.convert({"goal": goal}, Policy)


def test_a_misspelt_field_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InvalidRequest, match="has no field `max_token`; did you mean `max_tokens`"):
        _parse({"prompt": "hi", "max_token": 3})


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"has no field `zzz`; known are job, json_schema, max_tokens"):
        _parse({"prompt": "hi", "zzz": 3})


def test_unknown_fields_of_a_newer_program_are_ignored() -> None:
    assert _parse({"prompt": "hi", "zzz": 3, "v": 2}) == _parse({"prompt": "hi"})


def test_a_wrong_value_from_a_newer_program_is_still_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"max_tokens"):
        _parse({"prompt": "hi", "max_tokens": "three", "v": 2})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": " \n"}, "`prompt` is empty"),
        ({}, "either `prompt`"),
        ({"prompt": "hi", "messages": []}, "not both"),
        ({"messages": [{"role": "user", "content": " "}]}, "no content"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, r"\$\.messages\[0\]\.role"),
        ({"prompt": "hi", "max_tokens": 0}, ">= 1.*max_tokens"),
        ({"prompt": "hi", "temperature": -1}, ">= 0.*temperature"),
        ({"prompt": "hi", "top_p": 0}, "> 0"),
        ({"prompt": "hi", "stop": [""]}, "empty string"),
        ({"prompt": "hi", "stream": 1}, "`stream` must be true or false"),
        ({"prompt": "hi", "v": "2"}, "`v` must be a whole number"),
        ({"prompt": "hi", "v": True}, "`v` must be a whole number"),
        ({"prompt": "hi", "job": "a b"}, "`job` must be 1 to 64 of"),
        ({"prompt": "hi", "job": ""}, "`job` must be 1 to 64 of"),
        ({"prompt": "hi", "job": "a" * 65}, "`job` must be 1 to 64 of"),
        ({"prompt": "hi", "job": 7}, "`job` must be 1 to 64 of"),
        ({"prompt": "hi", "policy": "speedy"}, "policy.*goals are fastest, balanced, green, cheap, private"),
        ({"prompt": "hi", "policy": {"gaol": "fastest"}}, "policy.*gaol"),
        ({"prompt": "hi", "policy": {"deadline_s": -1}}, "policy.*deadline_s"),
        (["prompt"], "must be a map"),
        ("prompt", "must be a map"),
        (None, "must be a map"),
    ],
)
@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
def test_a_bad_request_is_refused_with_a_sentence(body: Any, message: str, format: Format) -> None:
    with pytest.raises(InvalidRequest, match=message):
        _parse(body, format)


def test_a_map_with_keys_that_are_not_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="text keys"):
        _parse({1: "hi"}, Format.MSGPACK)


def test_a_policy_with_keys_that_are_not_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="policy"):
        _parse({"prompt": "hi", "policy": {1: 2, "gaol": 3}}, Format.MSGPACK)


def test_text_for_a_capability_that_takes_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"test\.mute takes a JSON object"):
        parse_request(b"hi", MUTE, Format.TEXT)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        parse_request(b"\xff\xfe", CHATTING, Format.TEXT)


def test_ten_mebibytes_are_refused_with_the_limit() -> None:
    with pytest.raises(PayloadTooLarge, match=r"10\.0 MiB; the limit is 8 MiB"):
        parse_request(b" " * (10 * 2**20), CHATTING, Format.TEXT)
    assert parse_request(b"a" * MAX_REQUEST_BYTES, CHATTING, Format.TEXT).params.prompt


@given(st.binary(), st.sampled_from(list(Format)))
def test_bytes_of_any_kind_raise_nothing_but_our_errors(data: bytes, format: Format) -> None:
    with suppress(InvalidRequest):
        parse_request(data, CHATTING, format)


@given(st.dictionaries(st.sampled_from(KEYS), PLAIN, max_size=6), st.sampled_from([Format.JSON, Format.MSGPACK]))
def test_maps_of_any_kind_raise_nothing_but_our_errors(body: dict[str, Any], format: Format) -> None:
    with suppress(InvalidRequest):
        encode(parse_request(encode(body, format), CHATTING, format))


@pytest.mark.parametrize("data", [b"\x81\x90\x01", b"\x81\xc4\x01a\x01", b"\xc7\x00\x01", b"\xd6\xff\x00\x00\x00\x01"])
def test_messagepack_that_json_cannot_say_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_request(data, CHATTING, Format.MSGPACK)


@pytest.mark.parametrize("text", [rb'{"prompt": "\ud800"}', rb'{"prompt": "hi", "stop": "\udfff"}'])
def test_half_a_surrogate_pair_is_refused_or_can_be_passed_on(text: bytes) -> None:
    with suppress(InvalidRequest):
        encode(parse_request(text, CHATTING, Format.JSON))
