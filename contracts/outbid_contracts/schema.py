"""JSON Schemas of the wire, exported from the declarations: `python -m outbid_contracts.schema` prints them all."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from outbid_contracts import (
    admin,
    artifacts,
    doctor,
    durable,
    errors,
    events,
    files,
    history,
    keeping,
    messages,
    requests,
    runner,
    what_if,
)
from outbid_contracts.capability import Capability
from outbid_contracts.codec import VERSION
from outbid_contracts.policy import Policy

_ENVELOPE: dict[str, Any] = {
    "stream": {"type": "boolean", "default": False, "description": "one message per event, an empty last one"},
    "job": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "description": "id chosen by the caller"},
    "resume": {"type": "object", "description": "what the caller has of a stream that lost its owner"},
    "v": {"type": "integer", "description": "wire version of the sender, if newer than this node's"},
}


def request_schema(capability: Capability) -> dict[str, Any]:
    """Schema of a whole request: the capability's parameters and the envelope's keys, self-contained."""
    (top, policy), components = msgspec.json.schema_components(
        (capability.params, Policy), ref_template="#/$defs/{name}"
    )
    definitions: dict[str, Any] = dict(components)
    schema: dict[str, Any] = dict(definitions.pop(top["$ref"].rpartition("/")[2]))
    goal = definitions["Policy"]["properties"]["goal"]
    properties = dict(schema.get("properties", {})) | _ENVELOPE | {"policy": {"anyOf": [policy, goal]}}
    return schema | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def result_schema(capability: Capability) -> dict[str, Any]:
    return msgspec.json.schema(capability.result)


def all_schemas() -> dict[str, Any]:
    """Every message by name, with shared definitions."""
    types = [
        *_structs(messages, messages.Message),
        *_structs(requests, messages.Message),
        *_structs(durable, messages.Message),
        *_structs(keeping, messages.Message),
        *_structs(admin, messages.Message),
        *_structs(artifacts, messages.Message),
        *_structs(doctor, messages.Message),
        *_structs(events, events.Event),
        *_structs(files, messages.Message),
        *_structs(history, messages.Message),
        *_structs(runner, runner.Header),
        *_structs(what_if, messages.Message),
        errors.ErrorBody,
        Policy,
    ]
    _, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Outbid wire contract",
        "version": VERSION,
        "$defs": components,
    }


def _structs(module: Any, base: type) -> list[type]:
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__
    ]
    return [item for item in found if item not in (messages.Message, events.Event, runner.Header)]


if __name__ == "__main__":
    json.dump(all_schemas(), sys.stdout, indent=2)
    sys.stdout.write("\n")
