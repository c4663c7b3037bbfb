"""`NativeStream`: converts the pieces of an answer to native events, or to the whole answer."""

from collections.abc import Sequence
from typing import Any

from run_gpt.api.answers import (
    ChatAnswer,
    ChatChoice,
    ChatEvent,
    ChatEventChoice,
    ChatMessage,
    Choice,
    CompletionTokensDetails,
    Delta,
    FunctionDelta,
    GenerateAnswer,
    Logprobs,
    PromptTokensDetails,
    ToolCallDelta,
    Usage,
)
from run_gpt.api.chat import FunctionCall, ToolCall
from run_gpt.api.long_parts import logprobs_of
from run_gpt.api.pieces import CallPiece, Head, Piece
from run_gpt.api.schema import ChatRequest, Request
from run_gpt.api.sse import NUMBERS, TEXT, PlainEvent
from run_gpt.api.timings import Timings

Whole = GenerateAnswer | ChatAnswer
Event = GenerateAnswer | ChatEvent


class NativeStream:
    """The answer to one native request, built from pieces that come one after the other."""

    def __init__(self, request: Request, head: Head):
        self._is_chat = isinstance(request, ChatRequest)
        given = None if isinstance(request, ChatRequest) else request.prompt
        self._prompt = given if isinstance(given, str) else head.prompt
        self._head = head
        self._tokens = 0
        self._cached = 0
        self._reasoning: int | None = None
        self._begun: set[int] = set()
        self._plain: dict[tuple[int, bool], PlainEvent] = {}

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self._head.prompt_tokens + self._tokens

    def event(self, piece: Piece) -> Event:
        """Make the event of a piece. `usage` counts all tokens so far; `prompt` is in the first event only."""
        self.count(piece)
        first = piece.index not in self._begun
        if self._is_chat:
            event: Event = self._chat_event(piece, first=first)
        else:
            prompt = None if self._begun else self._prompt
            event = GenerateAnswer(choices=[_choice(piece)], prompt=prompt, **self._common(piece))
        self._begun.add(piece.index)
        return event

    def plain(self, piece: Piece) -> bytes | None:
        """Write the server-sent event of a plain piece the fast way; None for the first event of a sequence."""
        if piece.index not in self._begun:
            return None
        thought = bool(piece.reasoning)
        if (written := self._plain.get((piece.index, thought))) is None:
            written = self._plain[piece.index, thought] = PlainEvent(self._marked(piece.index, thought=thought))
        self._tokens += piece.tokens
        return written.write(piece.text or piece.reasoning, self._tokens, self._head.prompt_tokens + self._tokens)

    def count(self, piece: Piece) -> None:
        """Count the tokens of a piece for which no event is made here."""
        self._tokens += piece.tokens
        self._cached = self._cached or piece.cached
        if piece.reasoning_tokens is not None:
            self._reasoning = (self._reasoning or 0) + piece.reasoning_tokens

    def whole(self, sequences: Sequence[Piece], shown: Sequence[int] | None = None) -> Whole:
        """Make the whole answer from whole sequences, one piece each.

        `shown` holds the numbers of the sequences that become choices, in their new order; default: all. All sequences
        count in `usage`.
        """
        for piece in sequences:
            self.count(piece)
        common = self._common(sequences[-1])
        chosen = list(sequences) if shown is None else [sequences[number] for number in shown]
        for index, piece in enumerate(chosen):
            piece.index = index
        if self._is_chat:
            return ChatAnswer(choices=[_chat_choice(piece) for piece in chosen], **common)
        return GenerateAnswer(choices=[_choice(piece) for piece in chosen], prompt=self._prompt, **common)

    def _marked(self, index: int, *, thought: bool) -> Event:
        """Make the event that a PlainEvent is made from: of thinking, or of text."""
        common = self._common(Piece(index, TEXT, 0))
        common["usage"].completion_tokens, common["usage"].total_tokens = NUMBERS
        if self._is_chat:
            delta = Delta(content="", reasoning_content=TEXT, reasoning=TEXT) if thought else Delta(content=TEXT)
            return ChatEvent(choices=[ChatEventChoice(index=index, delta=delta)], **common)
        return GenerateAnswer(choices=[Choice(index=index, text=TEXT)], **common)

    def _chat_event(self, piece: Piece, *, first: bool) -> ChatEvent:
        calls = [_call_delta(call) for call in piece.calls] or None
        delta = Delta(role="assistant" if first else None, content=piece.text, tool_calls=calls, **_reasoning(piece))
        choice = ChatEventChoice(index=piece.index, delta=delta, **_ends(piece))
        return ChatEvent(choices=[choice], **self._common(piece))

    def _common(self, piece: Piece) -> dict[str, Any]:
        head = self._head
        usage = Usage(
            prompt_tokens=head.prompt_tokens,
            completion_tokens=self._tokens,
            total_tokens=head.prompt_tokens + self._tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached),
        )
        if self._reasoning is not None:
            usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=self._reasoning)
        timings = None if piece.timings is None else Timings.model_validate(piece.timings)
        return {"id": head.id, "created": head.created, "model": head.model, "usage": usage, "timings": timings}


def _choice(piece: Piece) -> Choice:
    return Choice(index=piece.index, text=piece.text, **_ends(piece))


def _chat_choice(piece: Piece) -> ChatChoice:
    calls: dict[int, ToolCall] = {}
    for part in piece.calls:
        call = calls.get(part.index)
        name, before = (call.function.name, call.function.arguments) if call else (part.name or "", "")
        function = FunctionCall(name=name, arguments=before + part.arguments)
        calls[part.index] = ToolCall(id=call.id if call else part.id, type="function", function=function)
    content = piece.text or (None if calls else "")
    message = ChatMessage(content=content, tool_calls=list(calls.values()) or None, **_reasoning(piece))
    return ChatChoice(index=piece.index, message=message, **_ends(piece))


def _ends(piece: Piece) -> dict[str, Any]:
    """Return the fields that all kinds of choices have beside the text."""
    return {"finish_reason": piece.finish, "stop_reason": piece.stop, "logprobs": _logprobs(piece)}


def _reasoning(piece: Piece) -> dict[str, Any]:
    """Return the fields of the thinking: clients read one or the other."""
    return {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning} if piece.reasoning else {}


def _call_delta(call: CallPiece) -> ToolCallDelta:
    if call.id is None:
        return ToolCallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
    function = FunctionDelta(name=call.name, arguments=call.arguments)
    return ToolCallDelta(index=call.index, id=call.id, type="function", function=function)


def _logprobs(piece: Piece) -> Logprobs | None:
    return None if piece.logprobs is None else logprobs_of(piece.logprobs)
