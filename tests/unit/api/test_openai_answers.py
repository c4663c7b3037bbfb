"""OpenAI's answers. Without these tests, choices could get wrong numbers, counts be wrong, or events out of order."""

import json
from typing import Any

import pytest

from run_gpt.api.answers import (
    ChatAnswer,
    ChatChoice,
    ChatEvent,
    ChatEventChoice,
    ChatMessage,
    Choice,
    Delta,
    FunctionDelta,
    GenerateAnswer,
    Logprobs,
    PromptTokensDetails,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from run_gpt.api.chat import FunctionCall, ToolCall
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.openai.base import UsageSum
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest, Offsets, token_text
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.pieces import CallPiece, Head, Piece


def usage(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


def about(number: int = 0, prompt: int = 1, completion: int = 1) -> dict[str, Any]:
    return {"id": f"id-{number}", "created": 5, "model": "m", "usage": usage(prompt, completion, prompt - 1)}


def token(data: bytes, logprob: float | None = -0.5, top: tuple[bytes, ...] = ()) -> TokenLogprob:
    def shown(data: bytes) -> dict[str, Any]:
        return {"token": data.decode(errors="replace"), "bytes": list(data)}

    likeliest = [TopLogprob(logprob=-0.1 * (i + 1), **shown(other)) for i, other in enumerate(top)]
    return TokenLogprob(logprob=logprob, top_logprobs=likeliest, **shown(data))


def completions(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse({"prompt": ["a", "b"], **fields})


def chats(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse({"messages": [{"role": "user", "content": "x"}], **fields})


def chunk(index: int = 0, *, finish: Any = None, logprobs: Any = None, **delta: Any) -> ChatEvent:
    choice = ChatEventChoice(index=index, delta=Delta(**delta), finish_reason=finish, logprobs=logprobs)
    return ChatEvent(choices=[choice], **about())


def written(request: Any, *events: Any) -> list[Any]:
    """Return the JSON of a writer's events. An event belongs to the first native stream, or comes with its number."""
    writer, bodies = request.writer(), []
    for event in events:
        bodies += list(writer.events(*(event if isinstance(event, tuple) else (0, event))))
    bodies += list(writer.end())
    return [json.loads(body.to_json()) for body in bodies]


def test_choices_are_numbered_through_prompts_and_their_answers() -> None:
    wholes = [
        GenerateAnswer(
            choices=[Choice(index=i, text=f"{name}{i}", finish_reason="stop") for i in range(2)], **about(k, 3, 2)
        )
        for k, name in enumerate("ab")
    ]
    answer = completions(n=2).join(wholes)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
    assert answer.id == "id-0"
    assert answer.usage == usage(6, 4, 4)


def test_streams_of_several_prompts_are_one_stream() -> None:
    """Events come in any order; the last event of each prompt has its usage."""

    def event(prompt: int, index: int, text: str, tokens: int) -> tuple[int, GenerateAnswer]:
        return prompt, GenerateAnswer(choices=[Choice(index=index, text=text)], **about(prompt, 3, tokens))

    request = completions(n=2, stream=True, stream_options={"include_usage": True})
    *bodies, last = written(request, event(1, 1, "d", 1), event(0, 0, "a", 1), event(0, 1, "b", 2), event(1, 0, "c", 2))
    assert [(body["choices"][0]["index"], body["choices"][0]["text"]) for body in bodies] == [
        *((3, "d"), (0, "a"), (1, "b"), (2, "c"))
    ]
    assert {body["id"] for body in (*bodies, last)} == {"id-1"}
    assert [body["usage"] for body in bodies] == [None] * 4
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 10)


def test_without_include_usage_no_event_speaks_of_it() -> None:
    event = GenerateAnswer(choices=[Choice(index=0, text="a", finish_reason="stop")], **about())
    (body,) = written(completions(stream=True), event)
    assert body.keys() == {"id", "object", "created", "model", "choices"}


def test_places_of_tokens_go_on_through_a_stream() -> None:
    tokens = [token(b) for b in ("é".encode()[:1], "é".encode()[1:], b" x", "😀".encode()[:2], "😀".encode()[2:], b"!")]
    offsets = Offsets()
    assert [offsets.next(t) for t in tokens] == [0, 1, 1, 3, 4, 4]
    events = [
        GenerateAnswer(choices=[Choice(index=0, text=text, logprobs=Logprobs(content=part))], **about())
        for text, part in (("é x", tokens[:3]), ("", tokens[3:4]), ("😀!", tokens[4:]))
    ]
    bodies = written(CompletionRequest.parse({"prompt": "x", "stream": True, "logprobs": 0}), *events)
    assert [body["choices"][0]["logprobs"]["text_offset"] for body in bodies] == [[0, 1, 1], [3], [4, 4]]


def test_a_part_of_a_character_is_shown_by_its_bytes() -> None:
    assert token_text(token(b"\xe6\x97")) == "bytes:\\xe6\\x97"
    assert token_text(token("日".encode())) == "日"
    assert token_text(TokenLogprob(token="x", logprob=0, top_logprobs=[])) == "x"


def test_completions_show_the_token_itself_among_the_likeliest() -> None:
    content = [token(b"a", None), token(b"b", -3.0, (b"x", b"y")), token(b"x", -0.1, (b"x",)), token(b"z", -2.0)]
    whole = GenerateAnswer(choices=[Choice(index=0, text="abxz", logprobs=Logprobs(content=content))], **about())
    logprobs = CompletionRequest.parse({"prompt": "x"}).join([whole]).choices[0].logprobs
    assert logprobs.tokens == ["a", "b", "x", "z"]
    assert logprobs.token_logprobs == [None, -3.0, -0.1, -2.0]
    assert logprobs.top_logprobs == [None, {"x": -0.1, "y": -0.2, "b": -3.0}, {"x": -0.1}, {"z": -2.0}]


def test_usage_adds_the_last_word_of_each_stream() -> None:
    total = UsageSum()
    for which, tokens in ((0, 1), (1, 5), (0, 2)):
        total.add(which, GenerateAnswer(choices=[], **about(0, 10, tokens)))
    assert total.total() == usage(20, 7, 18)


def test_a_chat_begins_with_the_role_and_ends_with_the_reason() -> None:
    bodies = written(
        chats(stream=True, n=2),
        chunk(0, role="assistant", content="a"),
        chunk(1, role="assistant", content="b", finish="length"),
        chunk(0, content="c", finish="stop"),
    )
    choices = [body["choices"][0] for body in bodies]
    assert [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in choices] == [
        (0, {"role": "assistant", "content": ""}, None),
        (0, {"content": "a"}, None),
        (1, {"role": "assistant", "content": ""}, None),
        (1, {"content": "b"}, None),
        (1, {}, "length"),
        (0, {"content": "c"}, None),
        (0, {}, "stop"),
    ]


def called(index: int, name: str) -> ToolCallDelta:
    return ToolCallDelta(index=index, id=f"call_{index}", type="function", function=FunctionDelta(name=name))


def argued(index: int, text: str) -> ToolCallDelta:
    return ToolCallDelta(index=index, function=FunctionDelta(arguments=text))


TOKENS = [Logprobs(content=[token(b"{")]), Logprobs(content=[token(b"}")])]


def test_a_chat_of_calls_has_no_text() -> None:
    bodies = written(
        chats(stream=True, logprobs=True),
        chunk(role="assistant", content="", tool_calls=[called(0, "f"), argued(0, "{")], logprobs=TOKENS[0]),
        chunk(content="", logprobs=TOKENS[1]),
        chunk(content="", tool_calls=[argued(0, "}")], finish="tool_calls"),
    )
    deltas = [body["choices"][0]["delta"] for body in bodies]
    assert [delta.get("content") for delta in deltas] == [None] * 6
    assert [[call["function"] for call in delta["tool_calls"]] for delta in deltas if "tool_calls" in delta] == [
        [{"name": "f"}, {"arguments": "{"}],
        [{"arguments": "}"}],
    ]
    tokens = [body["choices"][0]["logprobs"] for body in bodies]
    assert [t["content"][0]["token"] for t in tokens if t] == ["{", "}"]


def types(bodies: list[Any]) -> list[str]:
    return [body["type"].removeprefix("response.") for body in bodies]


TEXT = ["output_item.added", "content_part.added", "output_text.delta"]
TEXT_END = ["output_text.done", "content_part.done", "output_item.done"]
CALL = ["output_item.added", "function_call_arguments.delta"]
CALL_END = ["function_call_arguments.done", "output_item.done"]


def test_a_response_opens_and_closes_each_item() -> None:
    request = ResponseRequest.parse({"input": "x", "stream": True})
    bodies = written(
        request,
        chunk(content="I look."),
        chunk(content="", tool_calls=[called(0, "f"), argued(0, "{}")]),
        chunk(content="", tool_calls=[called(1, "g"), argued(1, "{")], finish="length"),
    )
    assert types(bodies) == [
        *("created", "in_progress", *TEXT, *TEXT_END, *CALL, *CALL_END, *CALL, *CALL_END, "incomplete")
    ]
    assert [body["sequence_number"] for body in bodies] == list(range(len(bodies)))
    output = bodies[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [
        ("message", "completed"),
        ("function_call", "completed"),
        ("function_call", "incomplete"),
    ]
    assert [item.get("arguments") for item in output] == [None, "{}", "{"]
    assert [item.get("call_id") for item in output] == [None, "call_0", "call_1"]
    places = [body["output_index"] for body in bodies if "output_index" in body]
    assert places == sorted(places)


def test_an_empty_response_has_an_empty_message_all_the_same() -> None:
    bodies = written(ResponseRequest.parse({"input": "x", "stream": True}), chunk(content="", finish="stop"))
    assert types(bodies) == ["created", "in_progress", *TEXT, *TEXT_END, "completed"]
    assert bodies[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_tokens_of_a_call_open_no_message() -> None:
    """Their log-probabilities come before the call is recognized."""
    request = ResponseRequest.parse({"input": "x", "stream": True, "top_logprobs": 0})
    bodies = written(
        request,
        chunk(content="", logprobs=TOKENS[0]),
        chunk(content="", tool_calls=[called(0, "f"), argued(0, "{}")], logprobs=TOKENS[1], finish="tool_calls"),
    )
    assert types(bodies) == ["created", "in_progress", *CALL, *CALL_END, "completed"]


def test_tokens_whose_text_comes_later_come_with_it() -> None:
    request = ResponseRequest.parse({"input": "x", "stream": True, "top_logprobs": 0})
    bodies = written(
        request,
        chunk(content="", logprobs=TOKENS[0]),
        chunk(content="{}", logprobs=TOKENS[1]),
        chunk(content="", logprobs=TOKENS[0], finish="stop"),
    )
    deltas = [body for body in bodies if body["type"] == "response.output_text.delta"]
    assert [(delta["delta"], [t["token"] for t in delta["logprobs"]]) for delta in deltas] == [
        ("{}", ["{", "}"]),
        ("", ["{"]),
    ]
    part = bodies[-1]["response"]["output"][0]["content"][0]
    assert [t["token"] for t in part["logprobs"]] == ["{", "}", "{"]


def test_a_whole_response_says_of_its_last_item_that_it_was_cut() -> None:
    calls = [ToolCall(id=f"c{i}", function=FunctionCall(name="f", arguments="{}")) for i in range(2)]
    message = ChatMessage(content="x", tool_calls=calls)
    whole = ChatAnswer(choices=[ChatChoice(index=0, message=message, finish_reason="length")], **about())
    answer = ResponseRequest.parse({"input": "x"}).join([whole])
    assert [item["status"] for item in answer.output] == ["completed", "completed", "incomplete"]
    assert (answer.status, answer.incomplete_details) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_response_echoes_its_schema_whole() -> None:
    """Nulls in a schema are values, not missing fields."""
    schema = {"enum": [None], "default": None}
    form = {"type": "json_schema", "name": "x", "schema": schema}
    assert ResponseRequest.parse({"input": "x", "text": {"format": form}}).echoed()["text"] == {"format": form}


@pytest.mark.parametrize("calls", [False, True])
def test_an_echoed_message_is_the_beginning_of_the_answer_whole_and_streamed(calls: bool) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one, "}]
    request = ChatCompletionRequest.parse({"messages": turns, "echo": True, "continue_final_message": True})
    (native,) = request.natives()
    head = Head(id="x", created=1, model="m", prompt_tokens=1)
    made = [CallPiece(index=0, id="c", name="f", arguments="{}")] if calls else []
    piece = Piece(0, "" if calls else "two", 1, finish="stop", calls=made)
    whole: Any = request.join([NativeStream(native, head).whole([piece])])
    writer = request.writer()
    events: list[Any] = list(writer.events(0, NativeStream(native, head).event(piece)))
    streamed = "".join(choice.delta.content or "" for event in events for choice in event.choices)
    assert whole.choices[0].message.content == streamed == ("one, " if calls else "one, two")
