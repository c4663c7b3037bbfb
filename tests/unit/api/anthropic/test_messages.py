"""Anthropic's messages: a turn that is lost, or a stream that says something else, would break its clients."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from run_gpt.api.anthropic.answers import SIGNATURE
from run_gpt.api.anthropic.messages import CountTokensRequest, MessagesRequest
from run_gpt.api.chat import NamedTool
from run_gpt.api.error_forms import anthropic_error
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.pieces import CallPiece, Head, Piece
from run_gpt.api.schema import ChatRequest
from run_gpt.api.tokens import TokenizeRequest
from run_gpt.api.translated import INVALID
from run_gpt.errors import (
    AuthenticationError,
    ContextLengthExceeded,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RequestTooLarge,
    Unavailable,
)
from run_gpt.gateway.stream_writer import StreamWriter

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {"a": {}}}}
HEAD = Head(id="x", created=1, model="tiny", prompt_tokens=10)


def native(**fields: Any) -> ChatRequest:
    request = MessagesRequest.parse({"model": "tiny", "max_tokens": 20, "messages": HI, **fields})
    (made,) = request.natives()
    return made


def test_a_conversation_with_calls_is_a_chat() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "text", "text": "there"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"b": 1, "a": "ä"}},
                {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "a door"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "content": [{"type": "text", "text": "none"}],
                    "is_error": True,
                },
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "user", "content": "Well?"},
    ]
    request = MessagesRequest.parse({"max_tokens": 5, "system": "Be kind.", "messages": turns, "tools": [TOOL]})
    messages = [message.model_dump(exclude_none=True) for message in request.natives()[0].messages]
    calls = messages[2].pop("tool_calls")
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("t1", "look", '{"b": 1, "a": "ä"}'),
        ("t2", "look", "{}"),
    ]
    assert messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Look\nthere"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "t1", "content": "a door"},
        {"role": "tool", "tool_call_id": "t2", "content": "none"},
        {"role": "user", "content": "And?\nWell?"},
    ]
    assert request.ignored == ("messages.content.redacted_thinking", "messages.content.is_error")


def test_the_line_for_billing_is_not_in_the_prompt() -> None:
    """It differs in each request of Claude Code: no prefix of its long instructions would be reused."""
    line = "x-anthropic-billing-header: cc_version=2.1; cch=ea6aa;"
    for system in (f"{line}\nYou help.", [{"type": "text", "text": line}, {"type": "text", "text": "You help."}]):
        assert native(system=system).messages[0].content == "You help."
    assert native(system=line).messages[0].role == "user"
    assert native(system=f"See {line}").messages[0].content == f"See {line}"


def test_instructions_within_the_conversation_are_the_users() -> None:
    """Claude Code sends them; many templates take a system message at the beginning only."""
    turns = [{"role": "system", "content": "First."}, *HI, {"role": "system", "content": "Later."}]
    messages = [(message.role, message.content) for message in native(system="Be kind.", messages=turns).messages]
    assert messages == [("system", "Be kind.\nFirst."), ("user", "Hi\nLater.")]


def test_an_assistants_last_turn_is_continued() -> None:
    begun = native(messages=[*HI, {"role": "assistant", "content": "Once"}])
    assert begun.continue_final_message
    assert native().continue_final_message is None


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"stop_sequences": ["a", "b"]}, "stop", ["a", "b"]),
        ({"temperature": 0.0}, "temperature", 0.0),
        ({"top_p": 0.0}, "top_p", 1e-9),
        ({"top_k": 3}, "top_k", 3),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "max_reasoning_tokens", 9),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "chat_template_kwargs", {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, "chat_template_kwargs", {"enable_thinking": False}),
        ({"thinking": {"type": "adaptive"}}, "max_reasoning_tokens", None),
        ({"output_config": {"effort": "low"}}, "chat_template_kwargs", {"reasoning_effort": "low"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice", "required"),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, "tool_choice", "none"),
        ({"tools": [], "tool_choice": {"type": "auto"}}, "tool_choice", None),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            "parallel_tool_calls",
            False,
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_field_is_honoured(fields: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(native(**fields), name) == value


def test_a_named_tool_and_a_form_are_enforced() -> None:
    named = native(tools=[TOOL], tool_choice={"type": "tool", "name": "look"}).tool_choice
    assert isinstance(named, NamedTool)
    assert named.function.name == "look"
    form = {"type": "json_schema", "schema": {"type": "object"}}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        asked = native(**fields).response_format
        assert asked is not None
        assert asked.json_schema is not None
        assert asked.json_schema.schema_ == {"type": "object"}


def test_hints_are_taken_and_named() -> None:
    request = MessagesRequest.parse(
        {
            "max_tokens": 5,
            "metadata": {"user_id": "u"},
            "service_tier": "auto",
            "context_management": {"edits": []},
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "tools": [TOOL | {"cache_control": {"type": "ephemeral"}}, {"type": "bash_20250124", "name": "bash"}],
            "messages": HI,
        }
    )
    assert request.asker == "u"
    assert set(request.ignored) == {
        *("context_management", "messages.content.cache_control", "tools.cache_control", "tools.bash_20250124"),
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
                                                        "content": [{"type": "image"}]}]}]},
            "messages[0].content[0].content[0].type",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": 257 * [
                {"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
            "messages[1].content",
        ),
        ({"messages": []}, "messages"),
        ({"tools": [{"name": "look"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 20}}, "thinking.budget_tokens"),
        ({"max_token": 5}, "max_token"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        native(**fields)
    assert raised.value.param == param
    assert raised.value.message.startswith(param)


def test_tokens_are_counted_by_the_prompt_that_would_run() -> None:
    asked = {"system": "s", "messages": HI, "tools": [TOOL], "thinking": {"type": "disabled"}}
    (counted,) = CountTokensRequest.parse(asked).natives()
    run = native(**asked)
    assert isinstance(counted, TokenizeRequest)
    for name in ("messages", "tools", "chat_template_kwargs"):
        assert getattr(counted, name) == getattr(run, name)


def pieces_of(seed: int) -> list[Piece]:
    """Return the pieces of a random answer: thinking, a text, calls, and an end."""
    chance = random.Random(seed)
    pieces = [Piece(0, "", 1, reasoning=chance.choice(["a", "ü\n"])) for _ in range(chance.randrange(3))]
    pieces += [Piece(0, chance.choice(["t", ' "x"', "\\"]), 1) for _ in range(chance.randrange(4))]
    for index in range(chance.randrange(3)):
        pieces.append(Piece(0, "", 1, calls=[CallPiece(index, "", f"call_{index}", "look")]))
        pieces += [Piece(0, "", 1, calls=[CallPiece(index, part)]) for part in ('{"a": ', '"ü"', "}")]
    called = any(piece.calls for piece in pieces)
    finish: Any = chance.choice(["tool_calls" if called else "stop", "length"])
    last = Piece(0, "", 1, finish=finish, stop="END" if finish == "stop" and chance.random() < 0.5 else None)
    if pieces:
        pieces[0].cached = chance.randrange(4)
    return [*pieces, last]


def joined(pieces: Sequence[Piece]) -> Piece:
    whole = Piece(0, "", 0)
    for piece in pieces:
        whole.add(piece)
    return whole


def accumulated(written: bytes) -> dict[str, Any]:
    """Return the message that a client of the stream puts together, by the rules of Anthropic's document."""
    message: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    kinds = []
    for block in written.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        kinds.append(event["type"])
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "partial": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[event["index"]]
            (field,) = delta.keys() - {"type"}
            into = "partial" if field == "partial_json" else field
            block[into] += delta[field]
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(blocks)
    for block in blocks:
        if (partial := block.pop("partial")) and block["type"] == "tool_use":
            block["input"] = json.loads(partial)
    return {**message, "content": blocks}


@pytest.mark.parametrize("seed", range(60))
def test_a_stream_says_what_the_whole_answer_says(seed: int) -> None:
    request = MessagesRequest.parse({"max_tokens": 90, "messages": HI, "tools": [TOOL], "stream": True})
    natives: Any = request.natives()
    writer = StreamWriter(request, natives)
    writer.begin(0, HEAD)
    streamed = accumulated(b"".join(writer.sse(0, piece) for piece in pieces_of(seed)))
    whole = json.loads(request.join([NativeStream(natives[0], HEAD).whole([joined(pieces_of(seed))])]).to_json())
    assert whole.pop("id").startswith("msg_")
    del streamed["id"]
    assert streamed == whole
    usage = whole["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == HEAD.prompt_tokens


def test_each_kind_of_end_has_its_reason() -> None:
    def ended(piece: Piece) -> dict[str, Any]:
        request = MessagesRequest.parse({"max_tokens": 9, "messages": HI, "tools": [TOOL]})
        natives: Any = request.natives()
        found: dict[str, Any] = json.loads(request.join([NativeStream(natives[0], HEAD).whole([piece])]).to_json())
        return found

    assert ended(Piece(0, "t", 1, finish="stop"))["stop_reason"] == "end_turn"
    assert ended(Piece(0, "t", 1, finish="length"))["stop_reason"] == "max_tokens"
    stopped = ended(Piece(0, "t", 1, finish="stop", stop="END"))
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "END")
    call = [CallPiece(0, '{"a"', "call_1", "look")]
    cut = ended(Piece(0, "", 1, finish="length", calls=call, reasoning="r"))
    assert cut["stop_reason"] == "max_tokens"
    assert cut["content"][0] == {"type": "thinking", "thinking": "r", "signature": SIGNATURE}
    assert cut["content"][1]["input"] == {INVALID: '{"a"'}


def test_errors_have_its_form() -> None:
    kinds = {
        ContextLengthExceeded: "invalid_request_error",
        AuthenticationError: "authentication_error",
        ModelNotFound: "not_found_error",
        RequestTooLarge: "request_too_large",
        QueueFull: "rate_limit_error",
        InternalError: "api_error",
        Unavailable: "overloaded_error",
        DeadlineExceeded: "timeout_error",
    }
    for error, kind in kinds.items():
        assert anthropic_error(error("why")) == {"type": "error", "error": {"type": kind, "message": "why"}}
