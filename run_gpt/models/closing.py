"""Objects of JSON schemas are closed: without a word about further properties, there are none.

JSON schema leaves them open, and a model then goes on with invented properties until its length ends. An object stays
open where its schema says so: by `additionalProperties`, `patternProperties` and the like, or without `properties`.
"""

from collections.abc import Mapping
from typing import Any

_OPENERS = (
    *("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties"),
    *("if", "then", "else", "not", "dependentSchemas"),
)
_LISTS = ("allOf", "anyOf", "oneOf")
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are maps of schemas."""
DATA = ("const", "enum", "default", "examples", "required", "x-guidance")
"""Keywords whose values are no schemas."""
_COPY = "x-open-"
"""Beginning of the name of a definition that is not closed."""


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no properties but those it names."""
    return _Closing(schema).whole()


class _Closing:
    """Work on one schema. Several schemas that hold for one object (`allOf`, say) are closed together.

    So a definition that is a part of such an object is needed in two forms: its open copy is a definition of its own.
    """

    def __init__(self, root: dict[str, Any]):
        self._root = root
        self._copies: dict[str, Any] = {}
        self._copy_of: dict[str, str] = {}

    def whole(self) -> dict[str, Any]:
        made: dict[str, Any] = self._alone(self._root)
        return {**made, "$defs": {**made.get("$defs", {}), **self._copies}} if self._copies else made

    def _alone(self, schema: Any) -> Any:
        """Return a schema of a value to which no other one applies."""
        if not isinstance(schema, dict):
            return schema
        parts = [key for key in (*_LISTS, "$ref") if key in schema]
        single = len(parts) + ("properties" in schema) == 1 and not (
            "allOf" in schema and len(_items(schema["allOf"])) != 1
        )
        if single and parts:
            return {**self._inner(schema, parts), **{key: self._each(schema[key], self._alone) for key in parts}}
        if not parts and "properties" not in schema:
            return self._inner(schema, ())
        names = self._names(schema, set())
        if names is None:  # it says itself which others there may be, or cannot be followed
            return {**self._inner(schema, parts), **{key: self._each(schema[key], self._part) for key in parts}}
        return self._without_others(self._part(schema), names)

    def _part(self, schema: Any) -> Any:
        """Return a schema that is one of several for its value: the object stays open here, those in it are closed."""
        if not isinstance(schema, dict):
            return schema
        parts = [key for key in (*_LISTS, "$ref") if key in schema]
        made = self._inner(schema, parts)
        made |= {key: self._each(schema[key], self._part) for key in parts if key != "$ref"}
        if "$ref" in schema:
            made["$ref"] = self._open_copy(schema["$ref"])
        return made

    def _inner(self, schema: Mapping[str, Any], left: Any) -> dict[str, Any]:
        """Return a schema with the schemas of inner values closed; the keywords in `left` are not looked at."""
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in MAPS and isinstance(value, dict):
                made[key] = {name: self._alone(one) for name, one in value.items()}
            elif key in left or key in DATA:
                made[key] = value
            else:
                made[key] = self._each(value, self._alone)
        return made

    @staticmethod
    def _each(value: Any, close: Any) -> Any:
        return [close(one) for one in value] if isinstance(value, list) else close(value)

    def _names(self, schema: Any, seen: set[str]) -> dict[str, None] | None:
        """Return the names of an object's properties in all schemas for it; None if it is open."""
        if not isinstance(schema, dict):
            return {}
        if any(key in schema for key in _OPENERS):
            return None
        names = dict.fromkeys([*schema.get("properties", {}), *_items(schema.get("required"))])
        parts = [one for key in _LISTS for one in _items(schema.get(key))]
        if (ref := schema.get("$ref")) is not None and ref not in seen:
            seen.add(ref)
            if (target := self._target(ref)) is None:
                return None
            parts.append(target)
        for part in parts:
            if (more := self._names(part, seen)) is None:
                return None
            names |= more
        return names

    def _without_others(self, schema: dict[str, Any], names: Mapping[str, None]) -> dict[str, Any]:
        given = schema.get("properties", {})
        properties = {**given, **{name: True for name in names if name not in given}}
        return {**schema, "properties": properties, "additionalProperties": False}

    def _open_copy(self, ref: Any) -> Any:
        """Return the reference to a definition's open copy."""
        target = self._target(ref)
        if target is None:
            return ref
        if ref not in self._copy_of:  # it may refer to itself
            name = self._copy_of[ref] = f"{_COPY}{len(self._copy_of)}"
            self._copies[name] = self._part(target)
        return f"#/$defs/{self._copy_of[ref]}"

    def _target(self, ref: Any) -> Any:
        """Return the schema of a reference within the schema; None for any other."""
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            return None
        found: Any = self._root
        for step in ref.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                return None
        return found


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
