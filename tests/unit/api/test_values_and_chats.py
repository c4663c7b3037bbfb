"""Values and chats in requests. Without these tests, order, texts and numbers could change on the way."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from run_gpt.api.chat import NamedTool, ResponseFormat, Tool, check_tools
from run_gpt.api.field_tables import PART
from run_gpt.api.json_text import parse_json
from run_gpt.api.parts import join
from run_gpt.api.values import DOCUMENT, Fault, JsonObject, Text, TextOrIds, field_path, one_or_list
from run_gpt.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"é": {"default": None}, "a": {"minimum": 10**12}}}


class Holder(BaseModel):
    """Values that a schema may have."""

    model_config = ConfigDict(strict=True)

    object: JsonObject | None = None
    prompt: TextOrIds | None = None
    text: Text | None = None


def test_an_object_may_be_json_text_and_is_that_in_a_document() -> None:
    """A document's maps have no order, and its integers have 32 bits."""
    for given in (SCHEMA, json.dumps(SCHEMA)):
        holder = Holder(object=given)  # type: ignore[arg-type]
        assert holder.object is not None
        assert (holder.object, list(holder.object["properties"])) == (SCHEMA, ["é", "a"])
    assert holder.model_dump()["object"] == SCHEMA
    text = holder.model_dump(context=DOCUMENT)["object"]
    assert (type(text), json.loads(text)) == (str, SCHEMA)
    assert "é" in text
    for wrong in ("{", "[]", 3):
        with pytest.raises(ValidationError):
            Holder(object=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("good", ["x", [1], [0, 2**31 - 1]])
def test_a_prompt_is_a_text_or_ids(good: Any) -> None:
    assert Holder(prompt=good).prompt == good


@pytest.mark.parametrize(
    ("bad", "path"),
    [("", "prompt"), ([], "prompt"), ([-1], "prompt[0]"), ([2**31], "prompt[0]"), ([True], "prompt[0]"), (3, "prompt")],
)
def test_another_prompt_is_named_where_it_is_wrong(bad: Any, path: str) -> None:
    """The matching part of a union is not in the name."""
    with pytest.raises(ValidationError) as raised:
        Holder(prompt=bad)
    assert field_path(raised.value.errors()[0]["loc"]) == path


def test_text_that_no_door_can_carry_is_refused() -> None:
    with pytest.raises(ValidationError):
        Holder(text="\ud800")
    assert Holder(text="").text == ""


def test_one_text_is_a_list_of_one() -> None:
    assert [one_or_list("x"), one_or_list(["x"]), one_or_list(3)] == [["x"], ["x"], 3]


def test_parts_of_a_content_become_lines() -> None:
    parts = [{"type": "x", "text": "a"}, {"type": "y", "text": "b"}]
    kinds = {"x": "text", "y": "text"}
    assert join(parts, kinds, PART, None) == "a\nb"
    assert join("a", kinds, PART, None) == "a"
    assert join([], kinds, PART, None) == ""
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for part, path in ((image, (1, "type")), ({"text": "a"}, (1, "type")), ("a", (1,)), ({"type": "x"}, (1, "text"))):
        with pytest.raises(Fault) as raised:
            join([parts[0], part], kinds, PART, None)
        assert raised.value.path == path


def tools(*names: str) -> list[Tool]:
    return [Tool.model_validate({"type": "function", "function": {"name": name}}) for name in names]


def test_a_choice_must_be_one_of_the_tools() -> None:
    def named(name: str) -> NamedTool:
        return NamedTool.model_validate({"type": "function", "function": {"name": name}})

    check_tools(tools("f", "g"), named("g"))
    check_tools(None, "none")
    check_tools(None, None)
    for given, choice, says in (
        (tools("f"), named("g"), "'g' is not one of tools"),
        (None, named("g"), "none is given"),
        ([], "auto", "this needs tools"),
        (None, "required", "this needs tools"),
        (tools("f", "f"), None, "two functions called 'f'"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            check_tools(given, choice)


def test_a_form_needs_what_its_type_says() -> None:
    form = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": SCHEMA}})
    assert json.loads(form.source or "") == SCHEMA
    assert ResponseFormat(type="regex", regex="a+").source == "a+"
    assert ResponseFormat(type="choice", choice=["é", "b"]).source == '["é", "b"]'
    assert ResponseFormat(type="json_object").source is None
    for wrong in ({"type": "regex"}, {"type": "text", "regex": "a"}, {"type": "json_object", "choice": ["a"]}):
        with pytest.raises(InvalidRequest, match="response_format"):
            ResponseFormat.model_validate(wrong)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (r'{"prompt": "\ud800"}', "prompt"),
        (r'{"prompt": "\uDC00\ud800"}', "prompt"),
        (r'{"prompt": "\\ud83d\ude00"}', "prompt"),
        (r'{"prompt": "\ud83d\\\ude00"}', "prompt"),
        (r'{"metadata": {"\ud800": "x"}}', "metadata"),
        (r'{"metadata": {"a": "\udfff"}}', "metadata.a"),
        (r'{"\ud800": 1}', ""),
        (r'{"tools": [{"function": {"parameters": {"properties": {"a": {"enum": ["\ud83d"]}}}}}]}',
         "tools[0].function.parameters.properties.a.enum[0]"),
        (r'{"response_format": {"json_schema": {"schema": {"required": ["a", "\ud800"]}}}}',
         "response_format.json_schema.schema.required[1]"),
        (r'{"x": {"y": [{"\ud800y": 1}]}}', "x.y[0]"),
    ],
)  # fmt: skip
def test_half_a_pair_of_surrogates_is_refused_wherever_it_stands(body: str, param: str) -> None:
    """Neither a grammar, gRPC nor an answer can carry it: it would be a 500 later, or another text."""
    with pytest.raises(InvalidRequest, match="not Unicode") as caught:
        parse_json(body, "the body")
    assert caught.value.param == param
    caught.value.message.encode()


def test_pairs_of_surrogates_and_what_looks_like_one_are_text() -> None:
    for body in (r'["\ud83d\ude00"]', r'["\\ud800"]', r'["\\\\ud800 \uD83D\uDE00"]', '["ud800"]'):
        assert parse_json(body, "the body") == json.loads(body)
