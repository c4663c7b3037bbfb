"""The answer to `/v1/responses`, whole or as the typed events of its stream."""

import itertools
import secrets
from collections.abc import Iterator
from typing import Any, Literal, cast

from run_gpt.api.answers import (
    Answer,
    Body,
    ChatAnswer,
    ChatEvent,
    Logprobs,
    ToolCallDelta,
    Usage,
    absent,
)
from run_gpt.api.sse import NUMBERS, TEXT, PlainEvent

Fields = dict[str, Any]
DELTA = "response.output_text.delta"
THOUGHT = "response.reasoning_text.delta"
STATUS = {"stop": "completed", "tool_calls": "completed", "length": "incomplete"}


class Response(Body):
    """The answer. Its output is a list of items: `reasoning`, texts (`message`) and calls (`function_call`)."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[Fields]
    usage: Fields | None
    incomplete_details: Fields | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float | None
    top_p: float | None
    tool_choice: str | Fields
    tools: list[Fields]
    text: Fields
    top_logprobs: int
    user: str | None
    error: None = None
    previous_response_id: None = None
    reasoning: Fields | None = None
    prompt_cache_key: str | None = absent()
    safety_identifier: str | None = absent()
    background: Literal[False] = False
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"


class ResponseStreamEvent(Body):
    """An event of the stream. Its fields depend on its type."""

    type: str
    sequence_number: int
    response: Response | None = absent()
    output_index: int | None = absent()
    content_index: int | None = absent()
    item_id: str | None = absent()
    item: Fields | None = absent()
    part: Fields | None = absent()
    delta: str | None = absent()
    text: str | None = absent()
    name: str | None = absent()
    arguments: str | None = absent()
    logprobs: list[Fields] | None = absent()


def response_of(chat: ChatAnswer, echoed: Fields) -> Response:
    """Return the whole answer. `echoed`: fields of the request that the answer repeats."""
    choice = chat.choices[0]
    status = STATUS[choice.finish_reason or "length"]
    output = []
    thought = choice.message.reasoning_content
    if thought is not None:
        output.append(_reasoning(_id("rs"), "completed", thought))
    if choice.message.content or (choice.message.content is not None and not output):
        output.append(_message(_id("msg"), "completed", choice.message.content, _logprobs(choice.logprobs)))
    for call in choice.message.tool_calls or ():
        output.append(_call(_id("fc"), "completed", call.id, call.function.name, call.function.arguments))
    output[-1]["status"] = status  # only the last item can be cut off
    return _response(_id("resp"), chat, status, output, _usage(chat.usage), echoed)


class ResponseWriter:
    """EventWriter that turns one native stream of a chat into the events of a response."""

    def __init__(self, echoed: Fields):
        self._echoed = echoed
        self._id = _id("resp")
        self._count = 0
        self._output: list[Fields] = []
        """Items so far; the last one may still be open."""
        self._open = False
        self._early: list[Fields] = []
        """Log-probabilities of tokens whose text has not come yet. The text of a call's tokens never comes."""
        self._plain: PlainEvent | None = None
        """Writer for more text of the open item."""

    def events(self, which: int, event: Answer) -> Iterator[ResponseStreamEvent]:
        """See EventWriter."""
        chat = cast("ChatEvent", event)
        if not self._count:
            for kind in ("response.created", "response.in_progress"):
                yield self._event(kind, response=self._snapshot(chat, "in_progress"))
        for choice in chat.choices:
            self._early += _logprobs(choice.logprobs)
            # More of the open call comes first: text would close the call.
            calls = choice.delta.tool_calls or []
            more = list(itertools.takewhile(lambda call: call.id is None, calls))
            for call in more:
                yield from self._call(call)
            if choice.delta.reasoning_content:
                yield from self._think(choice.delta.reasoning_content)
            if choice.delta.content or (self._early and self._in_text):
                yield from self._text(choice.delta.content or "")
            for call in calls[len(more) :]:
                yield from self._call(call)
            if choice.finish_reason is not None:
                status = STATUS[choice.finish_reason]
                if not self._output:
                    yield from self._text("")
                yield from self._close(status)
                yield self._event(f"response.{status}", response=self._snapshot(chat, status, _usage(chat.usage)))

    def plain(self, which: int, index: int, text: str, *, thought: bool) -> bytes | None:
        """See EventWriter."""
        if not (self._in_thought if thought else self._in_text) or self._early:
            return None
        if self._plain is None:
            kind = THOUGHT if thought else DELTA
            more: Fields = {} if thought else {"logprobs": []}
            fields: Fields = {**self._place, "delta": TEXT, **more}
            self._plain = PlainEvent(ResponseStreamEvent(type=kind, sequence_number=NUMBERS[0], **fields))
        self._item["content"][0]["text"] += text
        self._count += 1
        return self._plain.write(text, self._count - 1)

    def end(self) -> Iterator[ResponseStreamEvent]:
        """See EventWriter. Nothing follows: the finish reason came with the last event."""
        return iter(())

    def _think(self, text: str) -> Iterator[ResponseStreamEvent]:
        if not self._in_thought:
            yield from self._begin(_reasoning(_id("rs"), "in_progress", ""), content=[])
            yield self._event("response.content_part.added", **self._place, part=_thought(""))
        self._item["content"][0]["text"] += text
        yield self._event(THOUGHT, **self._place, delta=text)

    def _text(self, text: str) -> Iterator[ResponseStreamEvent]:
        logprobs, self._early = self._early, []
        if not self._in_text:
            yield from self._begin(_message(_id("msg"), "in_progress", "", []), content=[])
            yield self._event("response.content_part.added", **self._place, part=_part("", []))
        part = self._item["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        yield self._event(DELTA, **self._place, delta=text, logprobs=logprobs)

    def _call(self, call: ToolCallDelta) -> Iterator[ResponseStreamEvent]:
        if call.id is not None:
            yield from self._begin(_call(_id("fc"), "in_progress", call.id, call.function.name or "", ""))
        if call.function.arguments:
            self._item["arguments"] += call.function.arguments
            delta = call.function.arguments
            yield self._event("response.function_call_arguments.delta", **self._place, delta=delta)

    def _begin(self, item: Fields, **shown: Any) -> Iterator[ResponseStreamEvent]:
        """Open an item, after closing the one before. `shown`: fields that differ from the kept item in this event."""
        yield from self._close("completed")
        self._plain = None
        self._output.append(item)
        self._open = True
        index = len(self._output) - 1
        yield self._event("response.output_item.added", output_index=index, item={**item, **shown})

    def _close(self, status: str) -> Iterator[ResponseStreamEvent]:
        if not self._open:
            return
        self._open = False
        item = self._item
        item["status"] = status
        if item["type"] == "reasoning":
            part = item["content"][0]
            yield self._event("response.reasoning_text.done", **self._place, text=part["text"])
            yield self._event("response.content_part.done", **self._place, part=part)
        elif item["type"] == "message":
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **self._place, **done)
            yield self._event("response.content_part.done", **self._place, part=part)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **self._place, **done)
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _in_text(self) -> bool:
        return self._open and self._item["type"] == "message"

    @property
    def _in_thought(self) -> bool:
        return self._open and self._item["type"] == "reasoning"

    @property
    def _item(self) -> Fields:
        return self._output[-1]

    @property
    def _place(self) -> Fields:
        """Fields that say to which item and part an event belongs."""
        place = {"output_index": len(self._output) - 1, "item_id": self._item["id"]}
        return place if self._item["type"] == "function_call" else {**place, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> ResponseStreamEvent:
        event = ResponseStreamEvent(type=kind, sequence_number=self._count, **fields)
        self._count += 1
        return event

    def _snapshot(self, chat: Answer, status: str, usage: Fields | None = None) -> Response:
        return _response(self._id, chat, status, self._output, usage, self._echoed)


def _response(
    response_id: str, answer: Answer, status: str, output: list[Fields], usage: Fields | None, echoed: Fields
) -> Response:
    incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return Response(
        id=response_id,
        created_at=answer.created,
        status=cast("Any", status),
        model=answer.model,
        output=list(output),
        usage=usage,
        incomplete_details=incomplete,
        **echoed,
    )


def _message(item_id: str, status: str, text: str, logprobs: list[Fields]) -> Fields:
    content = [_part(text, logprobs)]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _reasoning(item_id: str, status: str, text: str) -> Fields:
    return {"id": item_id, "type": "reasoning", "status": status, "summary": [], "content": [_thought(text)]}


def _thought(text: str) -> Fields:
    return {"type": "reasoning_text", "text": text}


def _part(text: str, logprobs: list[Fields]) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _call(item_id: str, status: str, call_id: str | None, name: str, arguments: str) -> Fields:
    about = {"id": item_id, "type": "function_call", "status": status}
    return {**about, "call_id": call_id, "name": name, "arguments": arguments}


def _logprobs(logprobs: Logprobs | None) -> list[Fields]:
    return [] if logprobs is None else [token.model_dump() for token in logprobs.content]


def _usage(usage: Usage) -> Fields:
    details = usage.completion_tokens_details
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": details.reasoning_tokens if details else 0},
        "total_tokens": usage.total_tokens,
    }


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"
