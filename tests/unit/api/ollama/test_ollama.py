"""Ollama's API: programs that were written for it must get the same answers whole and streamed, and none is lost."""

import json
from typing import Any

import pytest

from run_gpt.api.native_stream import NativeStream
from run_gpt.api.ollama.requests import OllamaChatRequest, OllamaEmbedRequest, OllamaGenerateRequest
from run_gpt.api.pieces import CallPiece, Head, Piece
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import InvalidRequest
from run_gpt.gateway.stream_writer import StreamWriter

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
HEAD = Head(id="x", created=1, model="tiny", prompt_tokens=10)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TIMES = {"queue_seconds": 0.5, "prefill_seconds": 1.0, "decode_seconds": 2.0, "total_seconds": 3.5}
PIECES = {
    "text": [Piece(0, "a", 1), Piece(0, 'b"ü', 1), Piece(0, "", 1, finish="stop", timings=TIMES)],
    "thinking": [Piece(0, "", 1, reasoning="h"), Piece(0, "", 1, reasoning="m"), Piece(0, "x", 1, finish="length")],
    "calls": [
        Piece(0, "t", 1, calls=[CallPiece(0, "", "c0", "look"), CallPiece(0, '{"a"')]),
        Piece(0, "", 1, calls=[CallPiece(0, ': "ü"}')]),
        Piece(0, "", 1, calls=[CallPiece(1, "{}", "c1", "look")], finish="tool_calls"),
    ],
    "nothing": [Piece(0, "", 1, finish="stop")],
}
KINDS = {"chat": PIECES, "generate": ("text", "thinking", "nothing"), "raw": ("text", "nothing")}
"""Kinds of requests, with the answers that each may have: only a chat has tools, and a raw text no thinking."""


def native(**fields: Any) -> ChatRequest:
    (made,) = OllamaChatRequest.parse({"model": "tiny", "messages": HI, **fields}).natives()
    assert isinstance(made, ChatRequest)
    return made


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"options": {"num_predict": 5}}, "max_new_tokens", 5),
        ({"options": {"num_predict": -1}}, "max_new_tokens", 2**31 - 1),
        ({"options": {"temperature": 0, "top_k": 3.0}}, "top_k", 3),
        ({"options": {"seed": -1}}, "seed", 2**31 - 1),
        ({"options": {"repeat_penalty": 1.1}}, "repetition_penalty", 1.1),
        ({"options": {"stop": "x"}}, "stop", ["x"]),
        ({"think": False}, "chat_template_kwargs", {"enable_thinking": False}),
        ({"think": "low"}, "chat_template_kwargs", {"reasoning_effort": "low"}),
        ({"model": "tiny:latest"}, "model", "tiny"),
        ({}, "default_temperature", 0.8),
    ],
    ids=str,
)
def test_a_field_is_honoured(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(native(**fields), name) == value


def test_a_form_is_enforced() -> None:
    asked = native(format={"type": "object"}).response_format
    assert asked is not None
    assert asked.type == "json_schema"
    asked = native(format="json").response_format
    assert asked is not None
    assert asked.type == "json_object"
    assert native(format="").response_format is None


def test_results_follow_their_calls() -> None:
    call = {"function": {"name": "look", "arguments": {"a": "ü"}}}
    turns = [
        *HI,
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call, call]},
        {"role": "tool", "tool_name": "look", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    _, asked, one, two = native(messages=turns).messages
    assert asked.tool_calls is not None
    assert [made.id for made in asked.tool_calls] == [one.tool_call_id, two.tool_call_id]
    assert asked.tool_calls[0].function.arguments == '{"a": "ü"}'
    assert (asked.reasoning_content, asked.content) == ("Hm.", None)


def test_a_prompt_is_a_chat_unless_it_is_raw() -> None:
    (chat,) = OllamaGenerateRequest.parse({"prompt": "a", "system": "s"}).natives()
    assert isinstance(chat, ChatRequest)
    assert [(message.role, message.content) for message in chat.messages] == [("system", "s"), ("user", "a")]
    for fields in ({"raw": True}, {"suffix": "b"}):
        (raw,) = OllamaGenerateRequest.parse({"prompt": "a", **fields}).natives()
        assert isinstance(raw, GenerateRequest)
        assert raw.prompt == "a"


@pytest.mark.parametrize(
    ("request_type", "fields", "param"),
    [
        (OllamaChatRequest, {"messages": [{"role": "user", "content": "x", "images": ["abc"]}]}, "messages[0].images"),
        (OllamaChatRequest, {"messages": HI, "options": {"mirostat": 2}}, "options.mirostat"),
        (OllamaChatRequest, {"messages": HI, "options": {"temprature": 1}}, "options.temprature"),
        (OllamaChatRequest, {"messages": [{"role": "user", "thinking": "x"}]}, "messages[0].thinking"),
        (OllamaChatRequest, {"messages": []}, "messages"),
        (OllamaGenerateRequest, {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        (OllamaGenerateRequest, {"prompt": "x", "context": [1]}, "context"),
        (OllamaEmbedRequest, {"input": []}, "input"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(request_type: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        request_type.parse(fields)
    assert raised.value.param == param


def joined(lines: list[dict[str, Any]], place: str) -> dict[str, Any]:
    """Return the answer that a client puts together from the lines of a stream."""
    whole = dict(lines[-1])
    texts = {"content": "", "thinking": "", "response": ""}
    calls: list[Any] = []
    for line in lines:
        part = line if place == "response" else line["message"]
        for name in texts:
            texts[name] += part.get(name) or ""
        calls += part.get("tool_calls", [])
    if place == "response":
        return whole | {"response": texts["response"]} | ({"thinking": texts["thinking"]} if texts["thinking"] else {})
    message = {"role": "assistant", "content": texts["content"]}
    message |= {"thinking": texts["thinking"]} if texts["thinking"] else {}
    return whole | {"message": message | ({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize(("kind", "pieces"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_a_stream_says_what_the_whole_answer_says(kind: str, pieces: str) -> None:
    asked: Any = {
        "chat": lambda: OllamaChatRequest.parse({"messages": HI, "tools": [TOOL]}),
        "generate": lambda: OllamaGenerateRequest.parse({"prompt": "x"}),
        "raw": lambda: OllamaGenerateRequest.parse({"prompt": "x", "raw": True}),
    }[kind]()
    natives = asked.natives()
    writer = StreamWriter(asked, natives)
    writer.begin(0, HEAD)
    copies = [Piece(**{name: getattr(piece, name) for name in Piece.__struct_fields__}) for piece in PIECES[pieces]]
    written = b"".join(writer.sse(0, piece) for piece in copies)
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    together = Piece(0, "", 0)
    for piece in PIECES[pieces]:
        together.add(piece)
    whole = json.loads(asked.join([NativeStream(natives[0], HEAD).whole([together])]).to_json())
    assert joined(lines, "message" if kind == "chat" else "response") == whole
    assert whole["prompt_eval_count"] == 10
    if pieces == "text":
        assert whole["total_duration"] == 3_500_000_000
