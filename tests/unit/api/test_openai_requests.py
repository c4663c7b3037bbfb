"""Conversion of OpenAI's requests to native ones. A lost field would be accepted and ignored."""

from typing import Any

import pytest

from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.embeddings import EmbeddingRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import InvalidRequest

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"b": {"default": None}, "a": {}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
FLAT = {"type": "function", "name": "f", "parameters": SCHEMA}
REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (ChatCompletionRequest, {"messages": HI}),
    (CompletionRequest, {"prompt": "hi"}),
    (ResponseRequest, {"input": "hi"}),
    (EmbeddingRequest, {"input": "hi"}),
]


def chat(**fields: Any) -> ChatRequest:
    (native,) = ChatCompletionRequest.parse({"messages": HI, **fields}).natives()
    return native


def text(**fields: Any) -> GenerateRequest:
    (native,) = CompletionRequest.parse({"prompt": "hi", **fields}).natives()
    return native


def response(**fields: Any) -> ChatRequest:
    (native,) = ResponseRequest.parse({"input": "hi", **fields}).natives()
    return native


@pytest.mark.parametrize("native", [chat, text])
@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({}, {"temperature": None, "samples": False, "default_temperature": 1.0}),
        ({"temperature": 1}, {"temperature": 1.0, "samples": True}),
        ({"temperature": 0}, {"temperature": 0.0, "samples": False}),
        ({"temperature": 0, "top_p": 0.5}, {"samples": False, "top_p": 0.5}),
        ({"n": 3}, {"sequences": 3}),
        ({"stop": "x"}, {"stops": ("x",)}),
        ({"stop": ["x", "y"]}, {"stops": ("x", "y")}),
        ({"seed": 2**31 + 5}, {"seed": 5}),
        ({"seed": -1}, {"seed": 2**31 - 1}),
        ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2, "frequency_penalty": 2}),
        ({"logit_bias": {"7": -100}}, {"logit_bias": {"7": -100}}),
        ({"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}),
        ({"model": "m", "adapter": "a"}, {"model": "m", "adapter": "a"}),
        ({"response_format": {"type": "json_object"}}, {"form": "response_format"}),
        ({"response_format": {"type": "text"}}, {"form": None}),
    ],
    ids=str,
)
def test_sampling_is_taken_over(native: Any, fields: dict[str, Any], meant: dict[str, Any]) -> None:
    request = native(**fields)
    assert {name: getattr(request, name) for name in meant} == meant


def test_top_p_of_nothing_is_the_likeliest_token_alone() -> None:
    for request in (chat(top_p=0), text(top_p=0), response(top_p=0)):
        assert 0 < request.top_p < 1e-6


def test_lengths() -> None:
    assert text().max_new_tokens == 16
    assert text(max_tokens=0).max_new_tokens == 0
    assert chat(max_tokens=5).max_new_tokens == chat(max_completion_tokens=5).max_new_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=5).max_new_tokens == 5
    assert response(max_output_tokens=5).max_new_tokens == 5
    assert chat().max_new_tokens == response().max_new_tokens > 1000


def test_logprobs() -> None:
    assert [chat().logprobs, chat(logprobs=False).logprobs, chat(logprobs=True).logprobs] == [None, None, 0]
    assert chat(logprobs=True, top_logprobs=4).logprobs == 4
    assert [text().logprobs, text(logprobs=0).logprobs, text(logprobs=5).logprobs] == [None, 0, 5]
    include = ["message.output_text.logprobs"]
    assert [response().logprobs, response(include=include).logprobs, response(top_logprobs=2).logprobs] == [None, 0, 2]


@pytest.mark.parametrize(
    ("prompt", "natives"),
    [("hi", ["hi"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), (["a"], ["a"])],
)
def test_each_prompt_is_a_request_of_its_own(prompt: Any, natives: list[Any]) -> None:
    asked = CompletionRequest.parse({"prompt": prompt, "echo": True, "best_of": 3, "n": 2}).natives()
    assert [request.prompt for request in asked] == natives
    assert {(request.echo, request.best_of, request.sequences) for request in asked} == {(True, 3, 2)}


def test_texts_to_embed_are_one_request() -> None:
    for given, texts in (("hi", ["hi"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"])):
        (native,) = EmbeddingRequest.parse({"input": given, "adapter": "x"}).natives()
        assert (native.texts, native.adapter, native.encoding_format) == (texts, "x", None)


def test_tools_and_forms_reach_the_native_chat_in_their_order() -> None:
    form = {"type": "json_schema", "name": "it", "schema": SCHEMA, "strict": True}
    for request in (
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, parallel_tool_calls=False),
        response(tools=[FLAT], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False),
    ):
        (tool,) = request.tools
        assert (tool.function.name, list(tool.function.parameters["properties"])) == ("f", ["b", "a"])
        assert (request.tool_choice.function.name, request.parallel_tool_calls) == ("f", False)
    for request in (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}),
        response(text={"format": form}),
    ):
        assert list(request.response_format.json_schema.schema_["properties"]) == ["b", "a"]
    assert response(text={}).response_format is None


def test_items_are_messages_and_calls_that_stand_together_are_one() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
    ]
    turns = response(input=items, instructions="You are a clock.").messages
    assert [(turn.role, turn.content) for turn in turns] == [
        ("system", "You are a clock."),
        ("developer", "Be brief."),
        ("user", "one\ntwo"),
        ("assistant", "I look."),
        ("tool", "1"),
        ("tool", "2"),
    ]
    assert [(call.id, call.function.name) for call in turns[3].tool_calls] == [("c1", "f"), ("c2", "g")]
    assert [turn.tool_call_id for turn in turns[4:]] == ["c1", "c2"]


@pytest.mark.parametrize(("kind", "body"), REQUESTS)
def test_what_is_refused_is_named_unless_it_is_null(kind: Any, body: dict[str, Any]) -> None:
    for name, entry in kind.FIELDS.refused.items():
        for value in (v for v in ("x", False, {}, [], 3, ["audio"]) if not entry.grants(v)):
            with pytest.raises(InvalidRequest, match=f"^{name}: this is not supported here") as raised:
                kind.parse({**body, name: value})
            assert raised.value.param == name
        for value in entry.granted:
            assert kind.parse({**body, name: value}) == kind.parse(body)
    kind.parse({**body, **dict.fromkeys(kind.FIELDS.names)})
    with pytest.raises(InvalidRequest, match="colour: this field is not known"):
        kind.parse({**body, "colour": None})


@pytest.mark.parametrize(("kind", "body"), REQUESTS)
def test_null_is_the_default(kind: Any, body: dict[str, Any]) -> None:
    """Clients send unset parameters as null."""
    nothing = dict.fromkeys(name for name in kind.model_fields if name not in body)
    assert kind.parse({**nothing, **body}) == kind.parse(body)


def test_a_stream_is_what_says_so() -> None:
    for kind, body in REQUESTS[:3]:
        assert not kind.parse(body).streams
        assert kind.parse({**body, "stream": True}).streams
        assert kind.parse(body, stream=True).streams
        with pytest.raises(InvalidRequest, match="stream"):
            kind.parse({**body, "stream": False}, stream=True)
    with pytest.raises(InvalidRequest):
        EmbeddingRequest.parse({"input": "hi"}, stream=True)


@pytest.mark.parametrize(
    ("native", "fields", "param"),
    [
        (chat, {"stream_options": {}}, "stream_options"),
        (chat, {"top_logprobs": 1}, "top_logprobs"),
        (chat, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        (chat, {"logit_bias": {"x": 1}}, "logit_bias"),
        (chat, {"logit_bias": {"1": 101}}, "logit_bias.1"),
        (text, {"best_of": 1, "n": 2}, "best_of"),
        (text, {"best_of": 2, "stream": True}, "best_of"),
        (text, {"prompt": [[1], []]}, "prompt[1]"),
        (text, {"prompt": ["a", [1]], "max_tokens": 2**40, "n": 65}, "n"),
        (response, {"input": [{"type": "computer_call"}]}, "input"),
        (response, {"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (response, {"text": {"format": {"type": "text", "schema": {}}}}, "text.format"),
        (response, {"tools": [TOOL]}, "tools[0].function"),
        (response, {"tool_choice": "auto"}, "tool_choice"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_not_possible_is_named(native: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        native(**fields)
    assert raised.value.param == param
