"""Answers of Ollama's API, whole or as the lines of a stream."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, cast

from run_gpt.api.answers import Answer, Body, ChatEvent, Generation, ToolCallDelta, absent
from run_gpt.api.sse import LINES, TEXT, PlainEvent
from run_gpt.api.timings import Timings
from run_gpt.api.translated import arguments_object

Fields = dict[str, Any]
NANOSECONDS = 1_000_000_000
_NO_TIMES = Timings.model_validate(
    dict.fromkeys(("queue_seconds", "prefill_seconds", "decode_seconds", "total_seconds"), 0.0)
)


class OllamaAnswer(Body):
    """An answer, or one line of its stream; the last line has the figures."""

    model: str
    created_at: str
    message: Fields | None = absent()
    response: str | None = absent()
    thinking: str | None = absent()
    done: bool
    done_reason: Literal["stop", "length"] | None = absent()
    total_duration: int | None = absent()
    load_duration: int | None = absent()
    prompt_eval_count: int | None = absent()
    prompt_eval_duration: int | None = absent()
    eval_count: int | None = absent()
    eval_duration: int | None = absent()


class OllamaVectors(Body):
    """The answer to `/api/embed`."""

    model: str
    embeddings: list[list[float] | str]
    """Vectors; a text marks the place of one that is filled in later."""
    prompt_eval_count: int


def whole_answer(answer: Generation, text: str, thought: str, calls: list[Fields] | None, finish: str) -> Fields:
    """Return the fields of a whole answer of a chat, but for its message's place."""
    message: Fields = {"role": "assistant", "content": text}
    if thought:
        message["thinking"] = thought
    if calls:
        message["tool_calls"] = calls
    return {**_about(answer), "message": message, **_ended(answer, finish)}


def call(name: str, arguments: str) -> Fields:
    """Return a call of a message."""
    return {"function": {"name": name, "arguments": arguments_object(arguments)}}


class OllamaWriter:
    """EventWriter that turns one native stream into lines. `chat`: of `/api/chat`, else of `/api/generate`."""

    def __init__(self, *, chat: bool):
        self._chat = chat
        self._last: Generation | None = None
        self._call: tuple[str, str] | None = None
        """Name and arguments of the call that is being made: a line has all of a call."""
        self._plain: dict[bool, PlainEvent] = {}

    def events(self, which: int, event: Answer) -> Iterator[OllamaAnswer]:
        """See EventWriter."""
        self._last = answer = cast("Generation", event)
        for choice in answer.choices:  # type: ignore[attr-defined]
            delta = choice.delta if isinstance(answer, ChatEvent) else None
            thought = (delta.reasoning_content if delta else None) or ""
            text = (delta.content if delta else choice.text) or ""
            if thought:
                yield self._line(thinking=thought)
            if text:
                yield self._line(text=text)
            for made in (delta.tool_calls if delta else None) or ():
                yield from self._calls(made)
            if choice.finish_reason is not None:
                yield from self._end_call()
                yield self._line(**_ended(answer, choice.finish_reason))

    def plain(self, which: int, index: int, text: str, *, thought: bool) -> bytes | None:
        """See EventWriter."""
        if self._last is None:
            return None
        if thought not in self._plain:
            line = self._line(thinking=TEXT) if thought else self._line(text=TEXT)
            self._plain[thought] = PlainEvent(line, LINES)
        return self._plain[thought].write(text)

    def end(self) -> Iterator[OllamaAnswer]:
        """See EventWriter. Nothing follows: the finish reason came with the last event."""
        return iter(())

    def _calls(self, part: ToolCallDelta) -> Iterator[OllamaAnswer]:
        if part.id is not None:
            yield from self._end_call()
            self._call = (part.function.name or "", "")
        if self._call is not None:
            self._call = (self._call[0], self._call[1] + (part.function.arguments or ""))

    def _end_call(self) -> Iterator[OllamaAnswer]:
        if self._call is not None:
            yield self._line(calls=[call(*self._call)])
        self._call = None

    def _line(
        self, text: str = "", thinking: str = "", calls: list[Fields] | None = None, **ended: Any
    ) -> OllamaAnswer:
        about = {"done": False, **_about(cast("Generation", self._last)), **ended}
        if not self._chat:
            return OllamaAnswer(**about, response=text, thinking=thinking or None)
        message: Fields = {"role": "assistant", "content": text}
        message |= ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
        return OllamaAnswer(**about, message=message)


def _about(answer: Generation) -> Fields:
    return {"model": answer.model, "created_at": moment(answer.created)}


def moment(seconds: float) -> str:
    """Return a time as text: ISO 8601, of UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _ended(answer: Generation, finish: str) -> Fields:
    """Return the fields of an answer's end; times are nanoseconds."""
    times, usage = answer.timings or _NO_TIMES, answer.usage
    return {
        "done": True,
        "done_reason": "length" if finish == "length" else "stop",
        "total_duration": round(times.total_seconds * NANOSECONDS),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": round(times.prefill_seconds * NANOSECONDS),
        "eval_count": usage.completion_tokens,
        "eval_duration": round(times.decode_seconds * NANOSECONDS),
    }
