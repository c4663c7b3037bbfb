"""Answers and events of each endpoint against the OpenAPI description: a strict client refuses others."""

import json
from typing import Any

import jsonschema
import pytest

from run_gpt.api.answers import Body
from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.pieces import CallPiece, Head, Likely, Piece, Token, tokens_part
from run_gpt.api.sse import data_event
from run_gpt.api.translated import TranslatedRequest
from run_gpt.errors import QueueFull
from run_gpt.gateway.openapi import describe
from run_gpt.gateway.stream_writer import StreamWriter

DOCUMENT = describe("1")
TOKEN = tokens_part([Token("a", -0.5, [97], [Likely("b", -1.0, [98])])])
FIRST = tokens_part([Token("a", None, [97])])
CALLS = [CallPiece(0, "", "c", "f"), CallPiece(0, '{"a": 1}')]
MESSAGES = [{"role": "user", "content": "x"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]

PIECES = {
    "plain": [Piece(0, "a", 1), Piece(0, "b", 1), Piece(0, "c", 1, finish="stop")],
    "logprobs": [
        Piece(0, "a", 1, logprobs=[FIRST]),
        Piece(0, "", 1, logprobs=[TOKEN]),
        Piece(0, "b", 1, finish="length"),
    ],
    "empty": [Piece(0, "", 1, finish="stop")],
    "calls": [Piece(0, "a", 1), Piece(0, "", 1, calls=CALLS), Piece(0, "", 1, finish="tool_calls")],
    "a call first": [Piece(0, "", 1, calls=CALLS[:1]), Piece(0, "", 1, calls=CALLS[1:], finish="tool_calls")],
}
REQUESTS: dict[str, list[dict[str, Any]]] = {
    "/generate_stream": [{"prompt": "x"}, {"prompt": [1]}],
    "/chat_stream": [{"messages": MESSAGES, "tools": TOOLS}],
    "/v1/completions": [
        {"prompt": "x", "stream": True},
        {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}, "echo": True},
    ],
    "/v1/chat/completions": [
        {"messages": MESSAGES, "stream": True, "tools": TOOLS},
        {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}},
    ],
    "/api/chat": [{"messages": MESSAGES}],
    "/api/generate": [{"prompt": "x"}],
    "/v1/messages": [
        {"messages": MESSAGES, "stream": True},
        {"messages": MESSAGES, "stream": True, "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    ],
    "/v1/responses": [
        {"input": "x", "stream": True},
        {
            "input": "x",
            "stream": True,
            "instructions": "i",
            "metadata": {"a": "b"},
            "tools": [{"type": "function", "name": "f"}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        },
    ],
}


def validator(path: str, kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of an answer of a path, in one media type."""
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    return jsonschema.Draft202012Validator({**DOCUMENT, **content[kind]["schema"]})


def data_of(written: bytes) -> list[Any]:
    """Return the data of events; a line that is not JSON as a text."""
    found = []
    for block in written.decode().split("\n\n"):
        for line in block.splitlines():
            if line.startswith(("data: ", "{")):
                text = line.removeprefix("data: ")
                found.append(json.loads(text) if text.startswith("{") else text)
    return found


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("path", REQUESTS)
def test_every_event_and_answer_is_valid_by_the_description(path: str, pieces: str) -> None:
    endpoint = ENDPOINTS[path]
    for fields in REQUESTS[path]:
        request: Any = endpoint.request.parse(fields, stream=endpoint.answer is None)
        natives = request.natives() if isinstance(request, TranslatedRequest) else [request]
        head = Head(id="x", created=1, model="m", prompt_tokens=3)
        writer = StreamWriter(request, natives)
        writer.begin(0, head)
        written = b"".join(writer.sse(0, piece) for piece in PIECES[pieces])
        written += writer.written(writer.end())
        written += data_event(endpoint.last_line) if endpoint.last_line else b""
        events = data_of(written + endpoint.form.error(endpoint.error(QueueFull("full"))))
        assert len(events) > 1
        for event in events:
            validator(path, endpoint.form.content_type.partition(";")[0]).validate(event)
        if endpoint.answer is not None:
            whole: Any = NativeStream(natives[0], head).whole([PIECES[pieces][0]])
            whole.choices[0].finish_reason = "stop"
            answer: Body = request.join([whole])
            validator(path, "application/json").validate(json.loads(answer.to_json()))


def test_the_events_of_the_description_refuse_others() -> None:
    for path in REQUESTS:
        for wrong in ({}, {"choices": 1}, "nonsense", {"error": {}}):
            with pytest.raises(jsonschema.ValidationError):
                validator(path, ENDPOINTS[path].form.content_type.partition(";")[0]).validate(wrong)
