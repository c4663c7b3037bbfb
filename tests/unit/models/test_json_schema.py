"""Without these tests an answer could follow its schema by llguidance's reading and fail a client's validator."""

import pytest

from run_gpt.errors import InvalidRequest
from run_gpt.models.json_schema import enforceable

PATTERN = "^[^:]*:[^:]*:[0-5]"


def test_a_time_has_no_leap_second_wherever_its_schema_stands():
    time = {"type": "string", "format": "time"}
    limited = {**time, "pattern": PATTERN}
    schema = {"properties": {"a": time, "format": {"items": [time]}}, "$defs": {"b": {"anyOf": [time, True]}}}
    assert enforceable({**schema, "additionalProperties": True}) == {
        "additionalProperties": True,
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


CLOSED = {"additionalProperties": False}
A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "null"}}}
CLOSING = {
    "an object": (A, {**A, **CLOSED}),
    "an object in each place": (
        {"properties": {"x": A}, "items": A, "prefixItems": [A], "anyOf": [{"items": B}], "$defs": {"y": B}},
        None,
    ),
    "no properties": ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, **CLOSED}),
    "any object": ({"type": "object"}, {"type": "object"}),
    "an object with others": ({**A, "additionalProperties": True}, {**A, "additionalProperties": True}),
    "others by a schema": ({**A, "additionalProperties": B}, {**A, "additionalProperties": {**B, **CLOSED}}),
    "others by their names": (
        {**A, "patternProperties": {"^x": B}},
        {**A, "patternProperties": {"^x": {**B, **CLOSED}}},
    ),
    "others by their number": ({**A, "minProperties": 3}, {**A, "minProperties": 3}),
    "one of two": ({"anyOf": [A, B]}, {"anyOf": [{**A, **CLOSED}, {**B, **CLOSED}]}),
    "a nullable one": (
        {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": A}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {**A, **CLOSED}}},
    ),
    "one by allOf": (
        {"allOf": [{"$ref": "#/$defs/a"}], "description": "d", "$defs": {"a": A}},
        {"allOf": [{"$ref": "#/$defs/a"}], "description": "d", "$defs": {"a": {**A, **CLOSED}}},
    ),
    "two at once": ({"allOf": [A, B]}, {"allOf": [A, B], "properties": {"a": True, "b": True}, **CLOSED}),
    "a required name without a schema": (
        {**A, "required": ["a", "z"]},
        {"properties": {**A["properties"], "z": True}, "required": ["a", "z"], **CLOSED},
    ),
    "data": ({"const": A, "enum": [A], "default": A, "examples": [A]}, None),
}


@pytest.mark.parametrize("case", CLOSING)
def test_objects_have_no_others_unless_their_schema_says_so(case):
    """A small model would go on with invented properties until its length ends."""
    schema, made = CLOSING[case]
    if case == "data":
        made = schema
    if case == "an object in each place":
        made = {
            "properties": {"x": {**A, **CLOSED}},
            "items": {**A, **CLOSED},
            "prefixItems": [{**A, **CLOSED}],
            "anyOf": [{"items": {**B, **CLOSED}}],
            "$defs": {"y": {**B, **CLOSED}},
        } | CLOSED
    assert enforceable(schema) == made


def test_a_definition_that_is_a_part_and_stands_alone_has_two_forms():
    schema = {
        "properties": {"alone": {"$ref": "#/$defs/a"}, "both": {"allOf": [{"$ref": "#/$defs/a"}, B]}},
        "$defs": {"a": A},
    }
    made = enforceable(schema)
    assert made["$defs"]["a"] == {**A, **CLOSED}
    both = made["properties"]["both"]
    assert both["properties"] == {"a": True, "b": True}
    assert both["allOf"][1] == B
    name = both["allOf"][0]["$ref"].removeprefix("#/$defs/")
    assert made["$defs"][name] == A


def test_a_part_that_refers_to_itself_comes_to_an_end():
    node = {"properties": {"next": {"$ref": "#/$defs/node"}}, "allOf": [{"$ref": "#/$defs/node"}, A]}
    enforceable({"$ref": "#/$defs/node", "$defs": {"node": node}})
    enforceable({"$ref": "#"})
    enforceable({"allOf": [{"$ref": "#"}, A]})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 2**53 + 1},
        {"type": "integer", "maximum": 2**64 - 1},
        {"properties": {"a": {"items": {"exclusiveMaximum": -(2**60)}}}},
        {"anyOf": [{"multipleOf": 2**53 + 1}]},
        {"const": 2**53 + 1},
        {"enum": [1, {"a": [2**53 + 1]}]},
        {"$defs": {"a": {"const": 10**400}}},
    ],
)
def test_an_integer_that_would_be_rounded_is_refused_by_name(schema):
    with pytest.raises(InvalidRequest, match=r"has \w+ = -?\d+: integers beyond 2\*\*53 cannot be enforced") as caught:
        enforceable(schema)
    assert len(caught.value.message) < 200


def test_integers_of_64_bits_and_others_that_are_exact_are_kept():
    for schema in (
        {"maximum": 2**63 - 1},
        {"minimum": -(2**53), "maximum": 2**53},
        {"default": 2**70},
        {"const": True},
    ):
        assert enforceable(schema) == schema
