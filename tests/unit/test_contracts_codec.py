"""Laws of the wire: both encodings round-trip, other libraries read them, newer peers may say more."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbid_contracts import artifacts, errors, events, messages, policy, requests, runner
from outbid_contracts.codec import Format, decode, encode, format_of
from outbid_contracts.errors import InvalidRequest
from tests.unit.strategies import FINITE, PLAIN, instances, is_message

BASES = (
    (messages, messages.Message),
    (artifacts, messages.Message),
    (requests, messages.Message),
    (events, events.Event),
    (runner, runner.Header),
)
TYPES = [
    *(item for module, base in BASES for item in vars(module).values() if is_message(item, base, module.__name__)),
    errors.ErrorBody,
    policy.Policy,
]
FAMILIES = [
    messages.Proposal,
    messages.AwardReply,
    messages.Outcome,
    events.JobEvent,
    runner.ToRunner,
    runner.FromRunner,
]
few = settings(max_examples=20)  # for each of some seventy types
every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)


def _newer(value: Any) -> Any:
    """The same message as a peer of a later version would send it: each map of ours has a field more."""
    if isinstance(value, msgspec.Struct):
        plain = msgspec.to_builtins(value, builtin_types=(bytes,))
        mine = {f.encode_name: _newer(getattr(value, f.name)) for f in msgspec.structs.fields(value)}
        return {name: mine.get(name, said) for name, said in plain.items()} | {"added_later": {"x": [1]}}
    return (
        [_newer(item) for item in value]
        if isinstance(value, tuple | list)
        else msgspec.to_builtins(value, builtin_types=(bytes,))
    )


def test_every_module_of_the_contract_is_covered() -> None:
    assert len(TYPES) > 50
    assert len({kind.__name__ for kind in TYPES}) == len(TYPES), "two messages share a name"


@every_type
@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
@few
@given(st.data())
def test_a_message_survives_both_encodings(kind: type[msgspec.Struct], format: Format, data: st.DataObject) -> None:
    message = data.draw(instances(kind))

    assert decode(encode(message, format), kind, format) == message


@every_type
@few
@given(st.data())
def test_the_msgpack_package_reads_and_writes_the_same(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    message = data.draw(instances(kind))
    packed = encode(message, Format.MSGPACK)

    assert msgpack.unpackb(packed, strict_map_key=False) == msgspec.msgpack.decode(packed)
    assert decode(msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,))), kind) == message


@every_type
@pytest.mark.parametrize("format", [Format.JSON, Format.MSGPACK])
@few
@given(st.data())
def test_fields_of_a_newer_peer_are_ignored(kind: type[msgspec.Struct], format: Format, data: st.DataObject) -> None:
    message = data.draw(instances(kind))

    assert decode(encode(_newer(message), format), kind, format) == message


@pytest.mark.parametrize("kind", [kind for kind in TYPES if issubclass(kind, messages.Message)])
@few
@given(st.data())
def test_the_version_of_a_newer_peer_is_kept(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    message = data.draw(instances(kind))

    received: Any = decode(encode(msgspec.to_builtins(message, builtin_types=(bytes,)) | {"v": 2}), kind)

    assert received == msgspec.structs.replace(message, v=2)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@few
@given(st.data())
def test_a_member_of_a_family_is_told_by_its_tag(family: Any, data: st.DataObject) -> None:
    message = data.draw(instances(family))

    received: Any = decode(encode(message), family)

    assert (type(received), received) == (type(message), message)


@every_type
def test_messages_are_frozen(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen


@given(st.binary(), st.sampled_from(TYPES), st.sampled_from([Format.JSON, Format.MSGPACK]))
def test_garbage_is_an_invalid_request_and_nothing_else(data: bytes, kind: Any, format: Format) -> None:
    with suppress(InvalidRequest):
        decode(data, kind, format)


@given(PLAIN, st.sampled_from(TYPES), st.sampled_from([Format.JSON, Format.MSGPACK]))
def test_wrong_shapes_are_an_invalid_request_and_nothing_else(value: Any, kind: Any, format: Format) -> None:
    with suppress(InvalidRequest):
        decode(encode(value, format), kind, format)


@pytest.mark.parametrize(("data", "format"), [(b"[" * 100_000, Format.JSON), (b"\x91" * 100_000, Format.MSGPACK)])
def test_deep_nesting_is_an_invalid_request(data: bytes, format: Format) -> None:
    with pytest.raises(InvalidRequest):
        decode(data, Any, format)


def test_a_wrong_type_is_named_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match=r"Expected `int`.*\$\.attempt"):
        decode(b'{"job": "a", "attempt": "one"}', messages.CancelAttempt, Format.JSON)


@pytest.mark.parametrize(
    ("content_type", "data", "format"),
    [
        ("application/json", b"x", Format.JSON),
        ("Application/JSON; charset=utf-8", b"x", Format.JSON),
        ("application/msgpack", b"{", Format.MSGPACK),
        ("application/x-msgpack", b"{", Format.MSGPACK),
        ("text/plain", b"{}", Format.TEXT),
        (None, b'  {"prompt": "x"}', Format.JSON),
        (None, b"why is the sky blue?", Format.TEXT),
        (None, b"", Format.TEXT),
        ("", b"{}", Format.JSON),
    ],
)
def test_the_content_type_decides_and_else_the_first_byte(
    content_type: str | None, data: bytes, format: Format
) -> None:
    assert format_of(content_type, data) is format


def test_an_unknown_content_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"image/png.*application/json, application/msgpack or text/plain"):
        format_of("image/png", b"")


@given(FINITE)
def test_a_number_is_the_same_number_in_both_encodings(number: float) -> None:
    chunk = messages.Done(result={"n": number})

    assert decode(encode(chunk, Format.JSON), messages.Done, Format.JSON) == decode(encode(chunk), messages.Done)
