"""Values of any msgspec type, for hypothesis: a strategy read off the type itself, so that new messages come along."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

WHOLE = st.integers(-(2**63), 2**64 - 1)  # what MessagePack can hold
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | WHOLE | FINITE | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@cache
def instances(kind: Any) -> st.SearchStrategy[Any]:
    """Values of `kind`: a Struct, or anything `msgspec.inspect` understands."""
    return _of(inspect.type_info(kind))


def _of(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.StructType():
            return _struct(info)
        case inspect.Metadata():
            return _of(info.type)
        case inspect.UnionType():
            return st.one_of([_of(member) for member in info.types])
        case inspect.LiteralType():
            return st.sampled_from(info.values)
        case inspect.VarTupleType() | inspect.ListType():
            made = st.lists(_of(info.item_type), max_size=3)
            return made.map(tuple) if isinstance(info, inspect.VarTupleType) else made
        case inspect.TupleType():
            return st.tuples(*map(_of, info.item_types))
        case inspect.DictType():
            return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=3)
        case _:
            return _scalar(info)


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    needed = {field.name: _of(field.type) for field in info.fields if field.required}
    optional = {field.name: _of(field.type) for field in info.fields if not field.required}
    return st.fixed_dictionaries(needed, optional=optional).map(lambda fields: info.cls(**fields))


def _scalar(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.AnyType():
            return PLAIN
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            least = info.gt + 1 if info.gt is not None else info.ge
            return st.integers(-(2**63) if least is None else least, 2**63 - 1 if info.le is None else info.le)
        case inspect.FloatType():
            above = info.ge if info.gt is None else info.gt
            return st.floats(above, info.le, exclude_min=info.gt is not None, allow_nan=False, allow_infinity=False)
        case inspect.StrType():
            return st.text(max_size=20)
        case inspect.BytesType():
            return st.binary(max_size=20)
    raise NotImplementedError(f"no strategy for {info}")


def is_message(item: Any, base: type[msgspec.Struct], module: str) -> bool:
    """Whether `item` is a Struct below `base` that this module declares."""
    return isinstance(item, type) and issubclass(item, base) and item is not base and item.__module__ == module
