"""Messages and tools of chats. Without these tests, parts of them could be dropped silently on the way to the model."""

import pytest

from run_gpt.api.schema import ChatRequest
from run_gpt.errors import InvalidRequest

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def parse(*messages, **fields):
    return ChatRequest.parse({"messages": list(messages) or [USER], **fields})


def test_a_content_in_parts_is_their_lines():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert parse({"role": "user", "content": parts}).messages[0].content == "one\ntwo"


def test_an_answer_may_be_sent_back_as_it_came():
    """Run the loop of every program with tools: the answer's message, then the result of its call."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [call]}
    request = parse(USER, answer, {"role": "tool", "tool_call_id": "call_1", "content": "dark"}, tools=[TOOL])
    assert request.messages[1].tool_calls[0].function.name == "look"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "has no text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]},
            "cache: .*did you mean cache_control",
        ),
        ({"role": "user", "content": ["a"]}, "'str'"),
        ({"role": "user"}, "has no content"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "function_call"),
        ({"role": "user", "content": "a", "reasoning_content": "b"}, "reasoning_content"),
        ({"role": "user", "content": "a", "tool_calls": [{"function": {"name": "a", "arguments": ""}}]}, "tool_calls"),
        ({"role": "user", "content": "a", "tool_call_id": "x"}, "tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": ""}}]}, "has no id"),
    ],
)
def test_what_the_model_would_not_see_is_refused(message, says):
    with pytest.raises(InvalidRequest, match=says):
        parse(message)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required", "num_beams": 2}, "num_beams"),
        ({"response_format": {"type": "json_object"}, "min_new_tokens": 5}, "min_new_tokens"),
        ({"response_format": {"type": "regex", "choice": ["a"]}}, "response_format.regex"),
    ],
)
def test_what_cannot_be_together_is_refused_by_name(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert refused.value.param == param
