"""Bounds of requests: no value of any field may cost more than its share, or end in an error that is not the client's.

The fields come from the schemas themselves, so that those added later are tested, too.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.api.json_text import MAX_DEPTH, MAX_MEMBERS, MAX_OBJECT_VALUES, MAX_TOKEN_IDS, MAX_VALUES
from run_gpt.api.translated import TranslatedRequest
from run_gpt.errors import InvalidRequest
from run_gpt.gateway.bodies import parse_body

REQUESTS = sorted({endpoint.request for endpoint in ENDPOINTS.values()}, key=lambda model: model.__name__)
SCHEMAS: dict[str, Any] = models_json_schema([(model, "validation") for model in REQUESTS])[1]["$defs"]

NEEDED = {
    "prompt": "x",
    "messages": [{"role": "user", "content": "x"}],
    "texts": ["x"],
    "input": "x",
    "tokens": [1],
    "name": "x",
    "path": "x",
    "model": "x",
}

HUGE = 10**4000
EXTREMES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**31) - 1, -(2**63) - 1,
    HUGE, -HUGE, 0.0, -0.0, 0.5, 5e-324, 1e308, -1e308, float("inf"), float("-inf"), 2.0**31,
    "", "x", "\0", "\ud800", "x" * 100_000, "1", "null", "[" * 5000, "{" * 5000, '{"a":' * 5000, "9" * 5000, "NaN",
    [], [None], [[]], [[[[]]]], [""], ["x"] * 5000, [0] * 5000, [2**31], [HUGE], [-1] * 5000, [{}], [{}] * 5000, [True],
    {}, {"": None}, {"a": HUGE}, {"5": HUGE}, {"9" * 5000: 1}, {"٣": 1}, {"5": float("inf")}, {"5": 1, "05": 2},
    {str(i): 0 for i in range(5000)}, {"type": "text"}, {"type": []}, {"type": {}}, {"type": HUGE},
    {"type": "function", "function": None}, {"type": "json_schema", "json_schema": {"schema": {}}},
    {"type": "json_schema", "schema": "[" * 5000}, {"type": "regex", "regex": "(" * 5000}, {"content": "x"},
    [{"role": "user", "content": HUGE}], [{"role": "user", "content": [{"type": "text", "text": HUGE}]}],
    [{"role": "assistant", "tool_calls": [{"id": HUGE}]}], [{"type": "function", "function": {"name": []}}],
    [{"type": "function", "name": "f", "parameters": '{"a":' * 5000}],
]  # fmt: skip


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


def fields_of(model: type[BaseModel]) -> list[str]:
    extra = {"max_tokens", "n", "stop_str"} if "num_return_sequences" in model.model_fields else set()
    return sorted({*model.model_fields, *extra, *model.FIELDS.names, "unknown", "stream"})


def parsed(model: Any, fields: dict[str, Any], *, stream: bool = False) -> None:
    """Parse as the gateway does, and make and write the native requests; a short InvalidRequest is fine."""
    error = None
    try:
        request = model.parse(fields, stream=stream)
        for native in request.natives() if isinstance(request, TranslatedRequest) else [request]:
            native.model_dump_json(exclude_none=True)
    except InvalidRequest as refusal:
        error = refusal
    assert error is None or len(json.dumps(error.to_dict())) < 4000


@pytest.mark.parametrize("model", REQUESTS, ids=lambda model: model.__name__)
def test_no_value_of_any_field_is_more_than_a_short_error(model: Any) -> None:
    needed = {name: value for name, value in NEEDED.items() if name in SCHEMAS[model.__name__].get("required", ())}
    for name in fields_of(model):
        for value in [*EXTREMES, deep(10), deep(200)]:
            parsed(model, {**needed, name: value})
            parsed(model, {**needed, name: value}, stream=True)


_TOOL = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
_MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "y"},
]
_CHAT = {
    "messages": _MESSAGES,
    "tools": [{"type": "function", "function": _TOOL}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "logit_bias": {"5": 1.0},
    "stop": ["x"],
}
_FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}, "name": "n", "strict": True}}
WHOLE: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": [1, 2], "response_format": _FORM, "logit_bias": {"5": 1.0}, "stop": ["x"]},
    "/chat": _CHAT,
    "/tokenize": {"messages": _MESSAGES, "tools": _CHAT["tools"]},
    "/embed": {"texts": ["x", [1, 2]]},
    "/v1/completions": {"prompt": ["x", [1, 2]], "stream": True, "stream_options": {"include_usage": True}},
    "/v1/chat/completions": {**_CHAT, "response_format": _FORM},
    "/v1/responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "output_text", "text": "x"}]},
        ],
        "tools": [{"type": "function", **_TOOL}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "include": ["message.output_text.logprobs"],
        "metadata": {"a": "b"},
    },
    "/v1/embeddings": {"input": ["x", [1, 2]]},
    "/api/chat": {
        "model": "m",
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "r"},
        ],
        "options": {"temperature": 1, "num_predict": 3, "stop": ["x"]},
        "format": {"type": "object"},
        "think": "low",
    },
    "/api/generate": {"prompt": "a", "raw": True},
    "/api/embed": {"input": ["a"]},
    "/v1/messages": {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 3},
        "output_config": {"effort": "low"},
        "metadata": {"user_id": "u"},
        "stop_sequences": ["x"],
    },
}


def changed(value: Any, other: Any) -> Iterator[Any]:
    """Yield `value` with each of its parts replaced by `other`, one after the other, and with it in between."""
    yield other
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from ({**value, name: one} for one in changed(inner, other))
        yield {**value, "unknown": other}
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from ([*value[:i], one, *value[i + 1 :]] for one in changed(inner, other))
        yield [*value, other]


@pytest.mark.parametrize("path", WHOLE)
def test_no_value_at_any_place_of_a_request_is_more_than_a_short_error(path: str) -> None:
    model = ENDPOINTS[path].request
    model.parse(WHOLE[path])
    for value in [*EXTREMES, deep(10), deep(200)]:
        for fields in changed(WHOLE[path], value):
            if isinstance(fields, dict):
                parsed(model, fields)


def nodes(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each node of a JSON schema that describes a value."""
    if isinstance(schema, dict):
        if "type" in schema and not isinstance(schema["type"], dict):
            yield path, schema
        for name, inner in schema.items():
            yield from nodes(inner, f"{path}.{name}")
    elif isinstance(schema, list):
        for i, inner in enumerate(schema):
            yield from nodes(inner, f"{path}.{i}")


SEVERAL_FORMS = {"prompt", "texts", "input", "content", "output", "stop", "stop_sequences"}
"""Fields whose schema shows the forms in which they may be written; their bounds are those of the one inner form."""


def test_every_number_list_and_map_of_a_request_has_a_bound() -> None:
    """A field that is added without one fails here."""
    for name, schema in SCHEMAS.items():
        for path, node in nodes(schema, name):
            if SEVERAL_FORMS & set(path.split(".")):
                continue
            if node["type"] in ("integer", "number"):
                assert {"maximum", "exclusiveMaximum"} & node.keys(), f"{path}: no upper bound"
                assert {"minimum", "exclusiveMinimum"} & node.keys(), f"{path}: no lower bound"
                assert node.get("maximum", node.get("exclusiveMaximum")) <= 2**63
            elif node["type"] == "array":
                assert "maxItems" in node, f"{path}: no bound"
            elif node["type"] == "object" and isinstance(node.get("additionalProperties"), dict):
                assert "maxProperties" in node, f"{path}: no bound"


def test_a_whole_body_is_bounded_before_it_is_parsed() -> None:
    for body, limit in (
        (b'{"prompt": [' + b"1," * 1_900_000 + b"1]}", MAX_VALUES),
        (b'{"prompt": ' + b"[" * 4_000_000, MAX_VALUES),
        (b'{"a":' * 800_000, MAX_MEMBERS),
        (b"{" + b",".join(b'"%d":0' % i for i in range(MAX_MEMBERS + 2)) + b"}", MAX_MEMBERS),
        (b'{"x":"\\"\\\\' + b'\\\\",[' * 1_000_000, MAX_VALUES),
    ):
        with pytest.raises(InvalidRequest, match=f"{limit:,}"):
            parse_body(body)


def test_commas_and_brackets_in_texts_do_not_count() -> None:
    for text in ("a, [b] {c}: " * 100_000, '\\"' * 200_000, "\\" * 65_535 + '",[,' * 50_000, '"' * 500_000 + "\\"):
        assert parse_body(json.dumps({"prompt": text}).encode()) == {"prompt": text}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_json_in_another_encoding_is_refused(encoding: str) -> None:
    """Its bounds could not be counted."""
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        parse_body('{"prompt": "é"}'.encode(encoding))
    assert parse_body(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def schema_of(value: Any) -> dict[str, Any]:
    function = {"name": "f", "parameters": value}
    return {"messages": NEEDED["messages"], "tools": [{"type": "function", "function": function}]}


def test_schemas_are_bounded_in_depth_and_size() -> None:
    chat = ENDPOINTS["/chat"].request
    chat.parse(schema_of(deep(MAX_DEPTH // 2 - 2)))
    chat.parse(schema_of(json.dumps(deep(MAX_DEPTH // 2 - 2))))
    large = {str(i): 0 for i in range(MAX_OBJECT_VALUES)}
    for value, limit in (
        (deep(MAX_DEPTH), MAX_DEPTH),
        (json.dumps(deep(MAX_DEPTH)), MAX_DEPTH),
        (large, MAX_OBJECT_VALUES),
        ({"a": [0] * MAX_OBJECT_VALUES}, MAX_OBJECT_VALUES),
        (json.dumps(large), MAX_OBJECT_VALUES),
        ('{"a": [' + "1," * MAX_VALUES, MAX_VALUES),
    ):
        with pytest.raises(InvalidRequest, match=rf"tools\[0\].function.parameters: .*{limit:,}"):
            chat.parse(schema_of(value))


def test_token_ids_are_counted_in_all_prompts_together() -> None:
    half = [1] * (MAX_TOKEN_IDS // 2 + 1)
    for path, fields in (
        ("/generate", {"prompt": [1] * (MAX_TOKEN_IDS + 1)}),
        ("/detokenize", {"tokens": [1] * (MAX_TOKEN_IDS + 1)}),
        ("/embed", {"texts": [half, half]}),
        ("/v1/embeddings", {"input": [half, half]}),
        ("/v1/completions", {"prompt": [half, half]}),
    ):
        with pytest.raises(InvalidRequest, match=r"131,?07"):
            ENDPOINTS[path].request.parse(fields)


HOSTILE = {
    "ids": ("/v1/completions", b'{"prompt":[' + b"1," * (MAX_TOKEN_IDS - 1) + b"1]}"),
    "wrong ids": ("/generate", b'{"prompt":[' + b"-1," * (MAX_TOKEN_IDS - 1) + b"1]}"),
    "wrong messages": ("/chat", b'{"messages":[' + b"1," * (MAX_TOKEN_IDS - 1) + b"1]}"),
    "unknown fields": ("/chat", b"{" + b",".join(b'"%d":0' % i for i in range(MAX_MEMBERS - 2)) + b"}"),
    "bias": ("/chat", b'{"logit_bias":{' + b",".join(b'"%d":0' % i for i in range(MAX_MEMBERS - 2)) + b"}}"),
    "prompts": ("/v1/completions", b'{"prompt":[' + b'"a",' * 1023 + b'"a"]}'),
    "messages": ("/v1/responses", b'{"input":[' + b'{"role":"user","content":"x"},' * 4095 + b'{"content":"x"}]}'),
    "parts": ("/chat", b'{"messages":[{"role":"user","content":[' + b'{"type":"text","text":""},' * 14_000 + b"{}]}]}"),
    "digits": ("/generate", b'{"max_tokens":' + b"9" * 4_000_000 + b"}"),
    "fraction": ("/generate", b'{"prompt":"x","temperature":1.' + b"9" * 4_000_000 + b"}"),
    "escapes": ("/generate", b'{"prompt":"' + b"\\u00e9" * 690_000 + b'"}'),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_large_body_is_judged_in_little_time(kind: str) -> None:
    """Each took seconds of CPU time, for a list of all errors or of all values."""
    path, body = HOSTILE[kind]
    began = time.thread_time()
    with suppress(InvalidRequest):
        parsed(ENDPOINTS[path].request, parse_body(body))
    assert time.thread_time() - began < 1


def test_natives_are_made_once_and_differ_in_their_prompts() -> None:
    request = ENDPOINTS["/v1/completions"].request.parse({"prompt": ["a", "b", [1, 2]], "max_tokens": 3, "n": 2})
    assert isinstance(request, TranslatedRequest)
    natives: Any = request.natives()
    assert natives is request.natives()
    assert [native.prompt for native in natives] == ["a", "b", [1, 2]]
    assert {(native.max_new_tokens, native.sequences) for native in natives} == {(3, 2)}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1/completions"])
def test_a_granted_value_is_not_one_that_is_equal_to_it(path: str) -> None:
    field = {"/v1/responses": "input", "/v1/completions": "prompt"}.get(path, "messages")
    needed = {field: NEEDED[field], "stream": True}
    for value in (0, 0.0, 1, True, "false", False, None):
        request = ENDPOINTS[path].request.parse({**needed, "stream_options": {"include_obfuscation": value}})
        named = () if value is None or value is False else ("stream_options.include_obfuscation",)
        assert request.ignored == named, value
