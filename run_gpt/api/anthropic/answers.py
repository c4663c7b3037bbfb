"""The answer to `/v1/messages`, whole or as the events of its stream."""

import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

from run_gpt.api.answers import Answer, Body, ChatAnswer, ChatEvent, ToolCallDelta, Usage, absent
from run_gpt.api.sse import TEXT, PlainEvent
from run_gpt.api.translated import arguments_object

Fields = dict[str, Any]
SIGNATURE = "rungpt"
"""Signature of thinking: Anthropic's clients send thinking back with it. Nothing is checked by it here."""


class MessageAnswer(Body):
    """The answer. Its content is a list of blocks: `thinking`, `text` and `tool_use`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Fields]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: Fields


class MessageStreamEvent(Body):
    """An event of the stream. Its fields depend on its type."""

    type: str
    message: MessageAnswer | None = absent()
    index: int | None = absent()
    content_block: Fields | None = absent()
    delta: Fields | None = absent()
    usage: Fields | None = absent()


class InputTokens(Body):
    """Number of tokens of a request."""

    input_tokens: int


def message_of(chat: ChatAnswer) -> MessageAnswer:
    """Return the whole answer."""
    choice = chat.choices[0]
    content: list[Fields] = []
    if choice.message.reasoning_content:
        content.append({**_thinking(), "thinking": choice.message.reasoning_content, "signature": SIGNATURE})
    if choice.message.content:
        content.append({"type": "text", "text": choice.message.content})
    for call in choice.message.tool_calls or ():
        content.append({**_tool_use(call.id, call.function.name), "input": arguments_object(call.function.arguments)})
    return _message(chat, content, _stop(choice.finish_reason, choice.stop_reason))


class MessageWriter:
    """EventWriter that turns one native stream of a chat into the events of a message."""

    def __init__(self) -> None:
        self._begun = False
        self._index = -1
        self._open: str | None = None
        """Type of the open block."""
        self._plain: PlainEvent | None = None
        """Writer for more text of the open block."""

    def events(self, which: int, event: Answer) -> Iterator[MessageStreamEvent]:
        """See EventWriter."""
        chat = cast("ChatEvent", event)
        if not self._begun:
            self._begun = True
            yield MessageStreamEvent(type="message_start", message=_message(chat, [], {}))
            yield MessageStreamEvent(type="ping")
        for choice in chat.choices:
            # More of the open call comes first: text would close the call.
            calls = choice.delta.tool_calls or []
            more = list(itertools.takewhile(lambda call: call.id is None, calls))
            for call in more:
                yield from self._call(call)
            if choice.delta.reasoning_content:
                yield from self._text("thinking", choice.delta.reasoning_content)
            if choice.delta.content:
                yield from self._text("text", choice.delta.content)
            for call in calls[len(more) :]:
                yield from self._call(call)
            if choice.finish_reason is not None:
                yield from self._close()
                delta = {"stop_reason": None, "stop_sequence": None} | _stop(choice.finish_reason, choice.stop_reason)
                yield MessageStreamEvent(type="message_delta", delta=delta, usage=_usage(chat.usage))
                yield MessageStreamEvent(type="message_stop")

    def plain(self, which: int, index: int, text: str, *, thought: bool) -> bytes | None:
        """See EventWriter."""
        kind = "thinking" if thought else "text"
        if self._open != kind:
            return None
        if self._plain is None:
            self._plain = PlainEvent(self._delta(f"{kind}_delta", kind, TEXT))
        return self._plain.write(text)

    def end(self) -> Iterator[MessageStreamEvent]:
        """See EventWriter. Nothing follows: the finish reason came with the last event."""
        return iter(())

    def _text(self, kind: Literal["text", "thinking"], text: str) -> Iterator[MessageStreamEvent]:
        if self._open != kind:
            yield from self._begin(_thinking() if kind == "thinking" else {"type": "text", "text": ""})
        yield self._delta(f"{kind}_delta", kind, text)

    def _call(self, call: ToolCallDelta) -> Iterator[MessageStreamEvent]:
        if call.id is not None:
            yield from self._begin(_tool_use(call.id, call.function.name or ""))
        if call.function.arguments:
            yield self._delta("input_json_delta", "partial_json", call.function.arguments)

    def _begin(self, block: Fields) -> Iterator[MessageStreamEvent]:
        """Open a block, after closing the one before."""
        yield from self._close()
        self._open, self._plain = block["type"], None
        self._index += 1
        yield MessageStreamEvent(type="content_block_start", index=self._index, content_block=block)

    def _close(self) -> Iterator[MessageStreamEvent]:
        if self._open == "thinking":
            yield self._delta("signature_delta", "signature", SIGNATURE)
        if self._open is not None:
            yield MessageStreamEvent(type="content_block_stop", index=self._index)
        self._open = None

    def _delta(self, kind: str, name: str, text: str) -> MessageStreamEvent:
        return MessageStreamEvent(type="content_block_delta", index=self._index, delta={"type": kind, name: text})


def _message(answer: ChatAnswer | ChatEvent, content: Sequence[Fields], stop: Fields) -> MessageAnswer:
    return MessageAnswer(
        id=f"msg_{secrets.token_hex(12)}",
        model=answer.model,
        content=list(content),
        usage=_usage(answer.usage),
        **{"stop_reason": None, "stop_sequence": None, **stop},
    )


def _stop(finish: str | None, stop: str | None) -> Fields:
    """Return the reason of an answer's end. `stop`: stop sequence that ended it."""
    if finish == "stop" and stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": {"tool_calls": "tool_use", "stop": "end_turn"}.get(finish or "", "max_tokens")}


def _thinking() -> Fields:
    return {"type": "thinking", "thinking": "", "signature": ""}


def _tool_use(call_id: str | None, name: str) -> Fields:
    return {"type": "tool_use", "id": call_id, "name": name, "input": {}}


def _usage(usage: Usage) -> Fields:
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
