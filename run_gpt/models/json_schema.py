"""JSON schemas in the form that llguidance enforces exactly."""

from typing import Any

from run_gpt.errors import InvalidRequest
from run_gpt.models.closing import DATA, MAPS, closed

_SECONDS = {"time": "^[^:]*:[^:]*:[0-5]", "date-time": "^[^:]*:[^:]*:[0-5]"}
"""Patterns of times without a leap second: llguidance allows second 60 at any time, and validators hardly ever do."""
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_EXACT = 2**53
"""Largest integer up to which llguidance, which reads numbers as doubles, knows each one."""
_MOST_NESTED = 100
"""Most levels of a schema; llguidance reads up to 128."""
_INT64_MAX = 2**63 - 1
"""Bound of a signed integer of 64 bits, which llguidance enforces exactly."""


def enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with its objects closed, and patterns for what llguidance does not enforce of its formats.

    Raises InvalidRequest for a schema that is nested too deeply, or has an integer that would be rounded.
    """
    _check_depth(schema)
    made: dict[str, Any] = _enforceable(closed(schema))
    return made


def _check_depth(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > _MOST_NESTED:
            raise InvalidRequest(
                f"the JSON schema is nested too deeply: the limit is {_MOST_NESTED} levels", param="response_format"
            )
        members = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for several in members for one in several]


def _enforceable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_enforceable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BOUNDS or key in ("const", "enum"):
            _check_integers(key, value)
        if key in MAPS and isinstance(value, dict):
            made[key] = {name: _enforceable(one) for name, one in value.items()}
        else:
            made[key] = value if key in DATA else _enforceable(value)
    name = made.get("format")
    pattern = _SECONDS.get(name) if isinstance(name, str) else None
    if pattern is None:
        return made
    if "pattern" not in made:
        return {**made, "pattern": pattern}
    others = made.get("allOf", [])
    return {**made, "allOf": [*others, {"pattern": pattern}]} if isinstance(others, list) else made


def _check_integers(key: str, value: Any) -> None:
    """Raise InvalidRequest for an integer that llguidance would round."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _check_integers(key, one)
    elif isinstance(value, int) and abs(value) > _EXACT and (key, value) != ("maximum", _INT64_MAX):
        raise InvalidRequest(
            f"response_format: the JSON schema has {key} = {str(value)[:40]}: integers beyond 2**53 cannot be enforced "
            "exactly: leave it out",
            param="response_format",
        )
