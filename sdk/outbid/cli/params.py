"""`--param key=value`: what a word on the command line means for a capability's parameter.

The capability's declared type decides: `8` is a number for `max_tokens` and text for `prompt`. Where the type is not
known, the value is JSON if it reads as JSON, else text; `key:=json` is JSON whatever the type. `key=@file` is the
content of a file where the parameter takes such.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
import msgspec

from outbid.connection import Connection
from outbid_contracts import subjects

Schema = Mapping[str, Any]

SCHEMA_WAIT_S = 1.0
"""How long to wait for a node that declares the capability; nearly always the first answer does."""

_WORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:=|=)(.*)", re.DOTALL)
_ENVELOPE = {"stream": "", "v": "", "resume": "", "job": "; name the job with --job", "policy": "; use --policy"}
_NAMES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


class _Endpoint(msgspec.Struct, frozen=True):
    subject: str
    metadata: dict[str, str] = {}


class _Info(msgspec.Struct, frozen=True):
    endpoints: tuple[_Endpoint, ...] = ()


async def schema_of(connection: Connection, capability: str) -> Schema | None:
    """The JSON Schema of its request, as the nodes' micro services tell; None if none does."""
    wanted = subjects.capability(capability)
    async with aclosing(connection.replies("$SRV.INFO.outbid", idle_timeout_s=SCHEMA_WAIT_S)) as replies:
        async for data in replies:
            found = _schema_in(data, wanted)
            if found is not None:
                return found
    return None


def _schema_in(data: bytes, subject: str) -> Schema | None:
    try:
        info = msgspec.json.decode(data, type=_Info)
        texts = (endpoint.metadata["schema"] for endpoint in info.endpoints if endpoint.subject == subject)
        schema = json.loads(next(texts, "{}")).get("request")
    except (msgspec.DecodeError, ValueError, KeyError, AttributeError):
        return None
    return schema if isinstance(schema, dict) else None


def read(words: Iterable[str], schema: Schema | None) -> dict[str, Any]:
    """The parameters that the words give. Raises click.BadParameter with a sentence."""
    params: dict[str, Any] = {}
    for word in words:
        if any("\ud800" <= sign <= "\udfff" for sign in word):  # bytes that are no text come as lone surrogates
            raise _bad(f"{word!r} is not UTF-8")
        found = _WORD.fullmatch(word)
        if found is None:
            raise _bad(f"{word!r} is not key=value (or key:=json)")
        key, sign, text = found.groups()
        if key in params:
            raise _bad(f"{key} is given twice; a list is written {key}:='[…]'")
        known = _known(key, schema)
        params[key] = _json(key, text) if sign == ":=" else _typed(key, text, known, schema or {})
    return params


def _known(key: str, schema: Schema | None) -> Schema | None:
    """The parameter's own schema, None where anything may be."""
    if key in _ENVELOPE:
        raise _bad(f"{key} is not a parameter{_ENVELOPE[key]}")
    if schema is None:
        return None
    names = {name: one for name, one in schema.get("properties", {}).items() if name not in _ENVELOPE}
    if key in names or schema.get("additionalProperties", True) is not False:
        return names.get(key)
    close = difflib.get_close_matches(key, names, n=1)
    raise _bad(f"there is no {key}; " + (f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"))


def _typed(key: str, text: str, known: Schema | None, whole: Schema) -> Any:
    types = _types(known, whole) if known is not None else set()
    if known is not None and text.startswith("@") and _is_binary(known, whole):
        return _content(key, text[1:])
    value = _as_json(text)
    if not types:
        return text if value is _NOT_JSON else value
    if "string" in types:
        structured = isinstance(value, list | dict) and _fits(value, types)
        return value if structured else text
    if value is _NOT_JSON or not _fits(value, types):
        raise _bad(f"{key} must be {_named(types)}, not {text!r}")
    return value


def _types(schema: Schema, whole: Schema) -> set[str]:
    """The JSON types it allows; none means any."""
    if "$ref" in schema:
        return _types(_referred(schema, whole), whole)
    if branches := _branches(schema):
        each = [_types(branch, whole) for branch in branches]
        return set().union(*each) if all(each) else set()
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return {name for name in _NAMES if any(_fits(value, {name}) for value in values)}
    kind = schema.get("type", ())
    return {kind} if isinstance(kind, str) else set(kind)


def _is_binary(schema: Schema, whole: Schema) -> bool:
    """Whether it is bytes, which JSON has as base64."""
    if "$ref" in schema:
        return _is_binary(_referred(schema, whole), whole)
    return schema.get("contentEncoding") == "base64" or any(_is_binary(one, whole) for one in _branches(schema))


def _branches(schema: Schema) -> list[Schema]:
    return [branch for word in ("anyOf", "oneOf", "allOf") for branch in schema.get(word, ())]


def _referred(schema: Schema, whole: Schema) -> Schema:
    found: Schema = whole.get("$defs", {}).get(schema["$ref"].rpartition("/")[2], {})
    return found


def _content(key: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise _bad(f"{key}: {file} cannot be read: {error.strerror}") from error


def _fits(value: Any, types: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, _NAMES.get(name, ())) for name in types)


def _named(types: set[str]) -> str:
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    words |= {"array": "a JSON list", "object": "a JSON object"}
    return " or ".join(words[name] for name in words if name in types and not (name == "integer" and "number" in types))


class _NotJson:
    pass


_NOT_JSON = _NotJson()


def _as_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return _NOT_JSON


def _json(key: str, text: str) -> Any:
    value = _as_json(text)
    if value is _NOT_JSON:
        raise _bad(f"{key}:={text} is not JSON; text is written {key}=…")
    return value


def _bad(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="--param")
