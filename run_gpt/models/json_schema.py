"""JSON schemas in the form that llguidance enforces exactly."""

from typing import Any

from run_gpt.errors import InvalidRequest

_SECONDS = {"time": "^[^:]*:[^:]*:[0-5]", "date-time": "^[^:]*:[^:]*:[0-5]"}
"""Patterns of times without a leap second: llguidance allows second 60 at any time, and validators hardly ever do."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DATA = ("const", "enum", "default", "examples")


def enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with patterns for what its formats mean and llguidance does not enforce.

    Raises InvalidRequest for a schema that is nested too deeply.
    """
    try:
        made: dict[str, Any] = _enforceable(schema)
    except RecursionError:
        raise InvalidRequest("the JSON schema is nested too deeply", param="response_format") from None
    return made


def _enforceable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_enforceable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            made[key] = {name: _enforceable(one) for name, one in value.items()}
        else:
            made[key] = value if key in _DATA else _enforceable(value)
    name = made.get("format")
    pattern = _SECONDS.get(name) if isinstance(name, str) else None
    if pattern is None:
        return made
    if "pattern" not in made:
        return {**made, "pattern": pattern}
    others = made.get("allOf", [])
    return {**made, "allOf": [*others, {"pattern": pattern}]} if isinstance(others, list) else made
