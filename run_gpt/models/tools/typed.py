"""Types of arguments that models write as plain text: a function's schema says which of them are strings."""

import json
from collections.abc import Mapping
from typing import Any

from run_gpt.models.tools.function import Function

_LIMITED = ("pattern", "format")
_WORDS = {"True": "true", "False": "false", "None": "null"}  # as Python writes them
_DEPTH = 8


def is_text(function: Function, name: str) -> bool:
    """Return True if an argument is written as it is: a string, without limits that JSON's grammar must keep."""
    schema = property_of(function, name)
    return _types(schema, function.parameters or {}) == {"string"} and not any(key in schema for key in _LIMITED)


def as_json(function: Function, name: str, raw: str) -> str:
    """Return the JSON of an argument that is not written as it is: a value of its types, else a string."""
    types = _types(property_of(function, name), function.parameters or {})
    text = raw.strip()
    text = _WORDS.get(text, text)
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(raw, ensure_ascii=False)
    if types and "string" in types and not types & _names(value):
        return json.dumps(raw, ensure_ascii=False)
    return text


def property_of(function: Function, name: str) -> Mapping[str, Any]:
    """Return the schema of an argument; an empty one for one that the function does not name."""
    properties = (function.parameters or {}).get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """Return the names of the types that a schema allows; empty: any."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return set()
    if isinstance(ref := schema.get("$ref"), str):
        found: Any = root
        for step in ref.removeprefix("#/").split("/"):
            found = found.get(step) if isinstance(found, Mapping) else None
        return _types(found, root, depth + 1)
    if "const" in schema:
        return _names(schema["const"])
    if isinstance(values := schema.get("enum"), list):
        return set().union(*map(_names, values))
    if isinstance(kind := schema.get("type"), str | list):
        return {kind} if isinstance(kind, str) else {one for one in kind if isinstance(one, str)}
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(parts := schema.get(key), list):
            ways = [_types(part, root, depth + 1) for part in parts]
            return set().union(*ways) if all(ways) else set()
    return set()


def _names(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number"}
    names: dict[type[Any], str] = {str: "string", list: "array", dict: "object"}
    return {names.get(type(value), "null")}


def _refuse(name: str) -> None:
    raise ValueError(name)
