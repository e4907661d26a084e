"""Files that a job works on: what its parameters hold, or name by the id of an artifact."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outbid_contracts.artifacts import ArtifactId
from outbid_contracts.errors import InvalidRequest
from outbid_node.artifacts.reach import Reach

MAX_INPUT_BYTES = 64 * 1024 * 1024
"""Of all fetched files of one job together."""


class Inputs(NamedTuple):
    """`params` are the rest. `wanted`: artifacts to be fetched, by the name of their parameter."""

    params: dict[str, Any]
    files: dict[str, bytes]
    wanted: dict[str, ArtifactId]


def taken_out(params: Mapping[str, Any], names: Sequence[str]) -> Inputs:
    """Raises InvalidRequest for text that is not base64."""
    rest = dict(params)
    files: dict[str, bytes] = {}
    wanted: dict[str, ArtifactId] = {}
    for name in names:
        content, id = rest.pop(name, None), rest.pop(f"{name}_from", None)
        if content is not None:
            files[name] = _content(name, content)
        elif id is not None:
            wanted[name] = id
    return Inputs(rest, files, wanted)


async def fetched(reach: Reach, wanted: Mapping[str, ArtifactId]) -> dict[str, bytes]:
    """Raises what `Reach.fetch` does."""
    files: dict[str, bytes] = {}
    left = MAX_INPUT_BYTES
    for name, id in wanted.items():
        files[name] = await reach.fetch(id, left)
        left -= len(files[name])
    return files


def _content(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return b64decode(value, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"`{name}` is not base64: {error}") from error
    if not isinstance(value, bytes):
        raise InvalidRequest(f"`{name}` must be the content of a file")
    return value
