"""What a configuration key may hold, in words, and how text (environment, flags) becomes such a value.

Both are read off the key's declared type, so a capability's own section gets the same treatment as ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)
_BOUNDS = (("ge", "{} or more"), ("gt", "above {}"), ("le", "at most {}"), ("lt", "below {}"))


def allowed(kind: Any) -> str:
    """What a value of this type may be, e.g. `a number above 0 and 1 or less`."""
    return _words(inspect.type_info(kind))


def describe(kind: Any) -> str:
    """The description in the type's `Meta`, else nothing."""
    info = inspect.type_info(kind)
    return str((info.extra_json_schema or {}).get("description", "")) if isinstance(info, inspect.Metadata) else ""


def note(kind: Any, name: str) -> Any:
    """An entry of the type's `Meta(extra={...})`, or None."""
    info = inspect.type_info(kind)
    return (info.extra or {}).get(name) if isinstance(info, inspect.Metadata) else None


def from_text(text: str, kind: Any) -> Any:
    """The value `text` stands for. Raises ValueError (or its child msgspec.ValidationError) where it stands for none.

    Lists are comma separated, maps are JSON, booleans are true/false, yes/no, on/off, 1/0.
    """
    return msgspec.convert(_plain(text.strip(), list(_members(inspect.type_info(kind)))), type=kind, strict=False)


def _plain(text: str, members: list[inspect.Type]) -> Any:
    if any(isinstance(member, inspect.BoolType) for member in members):
        return _truth(text)
    if any(isinstance(member, _LISTS) for member in members):
        return [part for part in (part.strip() for part in text.split(",")) if part]
    if any(isinstance(member, inspect.DictType) for member in members):
        return json.loads(text)
    return text


def _truth(text: str) -> Any:
    word = text.lower()
    return True if word in _YES else False if word in _NO else text


def _members(info: inspect.Type) -> Iterator[inspect.Type]:
    """The type without its metadata, and each member of a union."""
    if isinstance(info, inspect.Metadata):
        yield from _members(info.type)
    elif isinstance(info, inspect.UnionType):
        for member in info.types:
            yield from _members(member)
    else:
        yield info


def _words(info: inspect.Type) -> str:
    if isinstance(info, inspect.Metadata):
        said = (info.extra or {}).get("allowed")
        return str(said) if said else _words(info.type)
    if isinstance(info, inspect.UnionType):
        return " or ".join(_words(member) for member in info.types if not isinstance(member, inspect.NoneType))
    if isinstance(info, inspect.LiteralType):
        return (
            "one of " + ", ".join(json.dumps(value) for value in info.values)
            if len(info.values) > 1
            else (json.dumps(info.values[0]))
        )
    if isinstance(info, inspect.BoolType):
        return "true or false"
    if isinstance(info, inspect.IntType):
        return "a whole number" + _bounds(info)
    if isinstance(info, inspect.FloatType):
        return "a number" + _bounds(info)
    if isinstance(info, inspect.StrType):
        return "text" + _lengths(info)
    if isinstance(info, inspect.DictType):
        return "a table"
    if isinstance(info, _LISTS):
        return f"a list, each {_words(info.item_type)}"
    return "a value of another type"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    found = [words.format(getattr(info, name)) for name, words in _BOUNDS if getattr(info, name) is not None]
    return f" {' and '.join(found)}" if found else ""


def _lengths(info: inspect.StrType) -> str:
    least, most = info.min_length, info.max_length
    if most is not None:
        return f" of {least or 0} to {most} characters"
    return f" of {least} or more characters" if least else ""
