"""Cutting a stream anywhere and going on gives what an unbroken one gives: the functions that capabilities declare."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_capabilities.llm.declaration import chat
from outbid_capabilities.testing import echo, noop
from outbid_capabilities.testing.runner import _split
from outbid_contracts.codec import Format
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.llm import ChatParams
from outbid_contracts.requests import Resume, parse_request

CHUNKS = st.lists(st.fixed_dictionaries({"text": st.text(min_size=1, max_size=4), "tokens": st.integers(1, 3)}))
HELLO = [{"text": "Hel", "tokens": 1}, {"text": "lo", "tokens": 2}]


def asked(**params: Any) -> dict[str, Any]:
    """As the owner keeps it."""
    found: dict[str, Any] = msgspec.to_builtins(msgspec.convert(params, ChatParams))
    return found


def test_an_answer_goes_on_as_the_assistants_message_with_the_tokens_that_are_left() -> None:
    rest = chat.resume_params(asked(prompt="Greet me.", max_tokens=10, temperature=0, stop="!"), HELLO)
    assert rest == {
        "messages": [{"role": "user", "content": "Greet me."}, {"role": "assistant", "content": "Hello"}],
        "max_tokens": 7,
        "temperature": 0,
        "stop": "!",
    }
    msgspec.convert(rest, ChatParams)


def test_a_message_that_the_caller_had_begun_is_extended() -> None:
    messages = [{"role": "user", "content": "Greet me."}, {"role": "assistant", "content": "Well, "}]
    rest = chat.resume_params(asked(messages=messages), HELLO)
    assert rest is not None
    assert rest["messages"] == [messages[0], {"role": "assistant", "content": "Well, Hello"}]
    assert messages[1]["content"] == "Well, ", "what was asked is left as it is"
    assert rest["max_tokens"] == 253, "of the default"


def test_an_answer_by_a_schema_starts_again() -> None:
    assert chat.resume_params(asked(prompt="x", json_schema={"type": "object"}), HELLO) is None


@given(CHUNKS, st.integers(0, 20))
def test_the_result_of_any_cut_is_the_whole_one(chunks: list[dict[str, Any]], at: int) -> None:
    tokens = sum(chunk["tokens"] for chunk in chunks)
    whole = {
        "text": "".join(chunk["text"] for chunk in chunks),
        "model": "m",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": tokens},
    }
    before, after = chunks[:at], chunks[at:]
    written = sum(chunk["tokens"] for chunk in before)
    rest = whole | {
        "text": "".join(chunk["text"] for chunk in after),
        "usage": {"prompt_tokens": 7 + written, "completion_tokens": tokens - written},
    }
    assert chat.resume_result(rest, before) == whole


def test_an_answer_whose_tokens_were_all_delivered_is_complete() -> None:
    params = asked(prompt="Greet me.", max_tokens=3)
    assert chat.resume_whole(params, HELLO, "m") == {
        "text": "Hello",
        "model": "m",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 0, "completion_tokens": 3},
    }
    assert chat.resume_params(params, HELLO) is None
    assert chat.resume_whole(asked(prompt="Greet me.", max_tokens=4), HELLO, "m") is None


@given(st.text(max_size=30), st.integers(1, 12), st.integers(0, 12))
def test_an_echo_cut_anywhere_has_the_same_pieces(text: str, chunks: int, at: int) -> None:
    pieces = [{"text": piece, "n": n} for n, piece in enumerate(_split(text, chunks))]
    params, before = {"text": text, "chunks": chunks}, pieces[:at]
    rest = echo.resume_params(params, before)
    assert rest is not None
    assert rest["first"] == len(before)
    left = "".join(str(piece["text"]) for piece in pieces[rest["first"] :])
    assert echo.resume_result({"text": left, "pid": 1}, before) == {"text": text, "pid": 1}
    whole = echo.resume_whole(params, before, None)
    assert (whole is not None) == (len(before) == chunks)
    assert whole is None or whole["text"] == text


def test_a_capability_that_says_nothing_starts_again() -> None:
    assert noop.resume_params({}, [{}]) is None
    assert noop.resume_whole({}, [{}], None) is None


def test_what_a_caller_has_already_comes_with_its_request() -> None:
    body = b'{"prompt":"x","stream":true,"job":"j","resume":{"chunks":[{"text":"a"}],"attempt":3,"model":"m"}}'
    parsed = parse_request(body, chat, Format.JSON)
    assert parsed.resume == Resume(chunks=({"text": "a"},), attempt=3, model="m")


@pytest.mark.parametrize(
    "resume", [b'"x"', b"[]", b'{"chunks":[1]}', b'{"chunks":[{"n":1}]}', b'{"attempt":-1}', b'{"pieces":[]}']
)
def test_pieces_that_are_none_of_the_capability_are_refused(resume: bytes) -> None:
    with pytest.raises(InvalidRequest, match="resume"):
        parse_request(b'{"prompt":"x","resume":' + resume + b"}", chat, Format.JSON)
