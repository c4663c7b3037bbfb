"""Our answers, sent back through the official clients' own types. What a client adds must never make it a 400."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from run_gpt.api.native_stream import NativeStream
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.pieces import CallPiece, Head, Piece
from run_gpt.api.sse import body_event

HI: Any = [{"role": "user", "content": "hi"}]
LOOK = CallPiece(index=0, id="call_0", name="look", arguments='{"at": "it"}')
CUT = CallPiece(index=1, id="call_1", name="look", arguments='{"at": "i')
PIECES: dict[str, Piece] = {
    "text": Piece(0, '{"at": "it"}', 1, finish="stop"),
    "a call": Piece(0, "", 1, finish="tool_calls", calls=[LOOK]),
    "text and calls, the last one cut": Piece(0, "I look.", 1, finish="length", calls=[LOOK, CUT]),
    "nothing": Piece(0, "", 1, finish="length"),
}
THOUGHT = {"reasoning_content": "hm", "reasoning": "hm"}
THOUGHT_ITEM = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
    "encrypted_content": None,
    "status": "completed",
}


class Look(BaseModel):
    """Look at something."""

    at: str


CHAT_TOOL = openai.pydantic_function_tool(Look, name="look")
TOOL: Any = {"type": "function", "name": "look", "parameters": CHAT_TOOL["function"]["parameters"], "strict": True}
HEAD = Head(id="x", created=1, model="m", prompt_tokens=1)


def answered(piece: Piece, *, thinks: bool) -> Callable[[httpx.Request], httpx.Response]:
    """Return a server that answers each request with this piece, and with reasoning before it if it `thinks`."""

    def answer(http_request: httpx.Request) -> httpx.Response:
        body = json.loads(http_request.content)
        kind: Any = ResponseRequest if http_request.url.path.endswith("responses") else ChatCompletionRequest
        request = kind.parse(body)
        (native,) = request.natives()
        if request.streams:
            writer = request.writer()
            events = [*writer.events(0, NativeStream(native, HEAD).event(piece)), *writer.end()]
            sent = b"".join(map(body_event, events)) + (b"" if kind is ResponseRequest else b"data: [DONE]\n\n")
            return httpx.Response(200, content=sent, headers={"content-type": "text/event-stream"})
        whole = json.loads(request.join([NativeStream(native, HEAD).whole([piece])]).to_json())
        if thinks and kind is ResponseRequest:
            whole["output"].insert(0, THOUGHT_ITEM)
        elif thinks:
            whole["choices"][0]["message"] |= THOUGHT
        return httpx.Response(200, json=whole)

    return answer


def client_of(piece: Piece, *, thinks: bool) -> openai.OpenAI:
    transport = httpx.MockTransport(answered(piece, thinks=thinks))
    return openai.OpenAI(base_url="http://x/v1", api_key="x", http_client=httpx.Client(transport=transport))


def dumps(value: Any) -> Iterator[Any]:
    """Yield the forms in which programs send an object of the client back."""
    yield value.to_dict()
    yield value.to_dict(exclude_unset=False)
    yield value.model_dump()
    for options in ({"exclude_unset": True}, {"exclude_none": True}, {"exclude_defaults": True}):
        yield value.model_dump(**options)


def results(message: Any) -> list[Any]:
    return [{"role": "tool", "tool_call_id": call.id, "content": "1"} for call in message.tool_calls or ()]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_a_message_of_a_chat_passes(name: str, way: str, thinks: bool) -> None:
    with client_of(PIECES[name], thinks=thinks) as client:
        asked: Any = {"model": "m", "messages": HI, "tools": [CHAT_TOOL]}
        if way == "stream":
            with client.chat.completions.stream(**asked) as stream:
                with suppress(openai.LengthFinishReasonError):
                    stream.until_done()
                message = stream.current_completion_snapshot.choices[0].message
        elif way == "parse" and PIECES[name].finish == "length":
            return  # the client itself raises an error
        elif way == "parse":
            form = {"response_format": Look} if name == "text" else {}
            message = client.chat.completions.parse(**asked, **form).choices[0].message
        else:
            message = client.chat.completions.create(**asked).choices[0].message
        for sent in (message, *dumps(message)):
            turns = [*HI, sent, *results(message), *HI]
            assert client.chat.completions.create(model="m", messages=turns, tools=[CHAT_TOOL]).choices
        if thinks and way == "create":
            (native,) = ChatCompletionRequest.parse({"messages": [*HI, message.to_dict()]}).natives()
            assert native.messages[1].reasoning_content == "hm"


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("way", ["create", "parse", "stream"])
def test_the_items_of_a_response_pass(name: str, way: str, thinks: bool) -> None:
    with client_of(PIECES[name], thinks=thinks) as client:
        asked: Any = {"model": "m", "input": HI, "tools": [TOOL]}
        if way == "stream":
            with client.responses.stream(**asked) as stream:
                whole: Any = [event for event in stream if hasattr(event, "response")][-1].response
        elif way == "parse" and PIECES[name].finish == "length":
            return
        elif way == "parse":
            whole = client.responses.parse(**asked, **({"text_format": Look} if name == "text" else {}))
        else:
            whole = client.responses.create(**asked)
        made = [item for item in whole.output if item.type == "function_call"]
        done: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": "1"} for item in made]
        assert client.responses.create(model="m", input=[*HI, *whole.output, *done, *HI], tools=[TOOL]).output
        for sent in zip(*[list(dumps(item)) for item in whole.output], strict=True):
            assert client.responses.create(model="m", input=[*HI, *sent, *done, *HI], tools=[TOOL]).output
        if thinks and way == "create":
            (native,) = ResponseRequest.parse({"input": [*HI, *[item.to_dict() for item in whole.output]]}).natives()
            assert native.messages[1].reasoning_content == "hm"
            assert len(native.messages) == 2


# Messages as openai-node's `parse`, its runner and its stream accumulate them: fields without a value are null.
_CALL = {
    "index": 0,
    "id": "call_0",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at": "it"}', "parsed_arguments": {"at": "it"}},
}
OF_NODE: list[dict[str, Any]] = [
    {"role": "assistant", "content": "a", "refusal": None},
    {"role": "assistant", "content": '{"at": "it"}', "refusal": None, "parsed": {"at": "it"}, "tool_calls": []},
    {"role": "assistant", "content": None, "refusal": None, "parsed": None, "tool_calls": [_CALL]},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": None,
        "audio": None,
        "tool_calls": [_CALL],
    },
    {"role": "assistant", "content": "a", "annotations": [], "refusal": None, "tool_calls": None, "phase": None},
    {"role": "assistant", "content": None, "refusal": "I must not."},
    {"role": "assistant", "content": [{"type": "text", "text": "a", "role": "assistant", "refusal": None}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "I must not."}]},
]
_PART = {"type": "output_text", "text": "a", "annotations": [], "logprobs": [], "parsed": {"at": "it"}}
ITEMS_OF_NODE: list[dict[str, Any]] = [
    {"id": "m", "type": "message", "status": "completed", "role": "assistant", "content": [_PART], "phase": None},
    {
        **{
            "id": "f",
            "type": "function_call",
            "status": "completed",
            "call_id": "c",
            "name": "look",
            "arguments": "{}",
        },
        **{"parsed_arguments": {}, "namespace": None, "caller": None},
    },
    {**THOUGHT_ITEM, "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "gAAA"},
    {"id": "r", "type": "reasoning", "summary": [], "content": None},
]


@pytest.mark.parametrize("message", OF_NODE, ids=str)
def test_a_message_of_node_passes(message: dict[str, Any]) -> None:
    made = message.get("tool_calls") or ()
    done = [{"role": "tool", "tool_call_id": call["id"], "content": "1", "name": "look"} for call in made]
    (native,) = ChatCompletionRequest.parse({"messages": [*HI, message, *done]}).natives()
    assert native.messages[1].content or native.messages[1].tool_calls


@pytest.mark.parametrize("item", ITEMS_OF_NODE, ids=str)
def test_an_item_of_node_passes(item: dict[str, Any]) -> None:
    assert ResponseRequest.parse({"input": [*HI, item]}).natives()


def test_reasoning_text_and_calls_that_follow_each_other_are_one_message() -> None:
    call = ITEMS_OF_NODE[1]
    (native,) = ResponseRequest.parse(
        {"input": [*HI, THOUGHT_ITEM, ITEMS_OF_NODE[0], call, *HI, THOUGHT_ITEM, call]}
    ).natives()
    told = [(m.role, m.content, m.reasoning_content, len(m.tool_calls or ())) for m in native.messages]
    assert told == [
        ("user", "hi", None, 0),
        ("assistant", "a", "hm", 1),
        ("user", "hi", None, 0),
        ("assistant", None, "hm", 1),
    ]
