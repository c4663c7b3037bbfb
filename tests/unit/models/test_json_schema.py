"""Without these tests an answer could follow its schema by llguidance's reading and fail a client's validator."""

import pytest

from run_gpt.errors import InvalidRequest
from run_gpt.models.json_schema import enforceable

PATTERN = "^[^:]*:[^:]*:[0-5]"


def test_a_time_has_no_leap_second_wherever_its_schema_stands():
    time = {"type": "string", "format": "time"}
    limited = {**time, "pattern": PATTERN}
    schema = {"properties": {"a": time, "format": {"items": [time]}}, "$defs": {"b": {"anyOf": [time, True]}}}
    assert enforceable(schema) == {
        "properties": {"a": limited, "format": {"items": [limited]}},
        "$defs": {"b": {"anyOf": [limited, True]}},
    }


def test_a_pattern_of_the_schema_stays():
    schema = {"format": "date-time", "pattern": "Z$", "allOf": [{"minLength": 3}]}
    assert enforceable(schema) == {**schema, "allOf": [{"minLength": 3}, {"pattern": PATTERN}]}


def test_data_is_left_as_it_is():
    schema = {"const": {"format": "time"}, "enum": [{"format": "time"}], "format": "date", "x": {"format": 1}}
    assert enforceable(schema) == schema


def test_a_schema_that_is_nested_too_deeply_is_refused():
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        enforceable(schema)
