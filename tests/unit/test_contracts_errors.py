"""The error tree: codes that programs rely on never change meaning, and every message can be acted on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.errors import BY_CODE, ErrorBody, OutbidError, UnknownModel, from_body
from tests.unit.strategies import PLAIN

# Published. A line may be added; changing or removing one breaks other people's programs.
STABLE = {
    "attempt_failed": 500,
    "attempts_exhausted": 500,
    "busy": 503,
    "cancelled": 499,
    "checksum_mismatch": 502,
    "context_overflow": 400,
    "deadline_exceeded": 504,
    "dependency_failed": 500,
    "draining": 503,
    "duplicate_job": 409,
    "internal": 500,
    "invalid_config": 400,
    "invalid_request": 400,
    "no_bid": 503,
    "no_node": 503,
    "no_space": 507,
    "node_lost": 500,
    "node_unreachable": 503,
    "not_done": 425,
    "out_of_memory": 500,
    "payload_too_large": 413,
    "pull_failed": 502,
    "refused": 409,
    "runner_crashed": 500,
    "runner_unavailable": 500,
    "storage_failed": 507,
    "bad_query": 400,
    "query_too_long": 408,
    "no_history": 503,
    "unknown_artifact": 404,
    "unknown_capability": 404,
    "unknown_job": 404,
    "unknown_model": 404,
}
every_error = pytest.mark.parametrize("kind", _all := list(BY_CODE.values()), ids=lambda kind: kind.__name__)


def _tree(kind: type[OutbidError]) -> list[type[OutbidError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


def test_codes_are_stable() -> None:
    assert {code: kind.status for code, kind in BY_CODE.items()} == STABLE


def test_codes_are_unique() -> None:
    ours = [kind for kind in _tree(OutbidError) if kind.__module__ == OutbidError.__module__]

    assert len({kind.code for kind in ours}) == len(ours)


@every_error
def test_the_docstring_is_the_default_message(kind: type[OutbidError]) -> None:
    message = kind().message

    assert message.endswith(".")
    assert "\n" not in message
    assert kind("told").message == "told"
    assert str(kind("told")) == "told"


@every_error
def test_an_error_comes_back_as_itself(kind: type[OutbidError]) -> None:
    back = from_body(kind("told", node="a").body())

    assert type(back) is kind
    assert (back.message, back.detail) == ("told", {"node": "a"})


@given(st.text(min_size=1), st.dictionaries(st.text(), PLAIN, max_size=4), st.sampled_from(_all))
def test_any_message_and_detail_come_back(message: str, detail: dict[str, Any], kind: type[OutbidError]) -> None:
    back = from_body(kind(message, **detail).body())

    assert (type(back), back.message, back.detail) == (kind, message, detail)


def test_a_code_of_a_newer_peer_is_a_plain_error() -> None:
    back = from_body(ErrorBody(code="too_warm", message="the machine is too warm"))

    assert type(back) is OutbidError
    assert back.message == "the machine is too warm"


def test_a_child_is_caught_as_its_parent() -> None:
    with pytest.raises(OutbidError, match="Llama"):
        raise UnknownModel("no node has Llama")
