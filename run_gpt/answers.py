"""Writes the wire's answers from the engine's events."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from run_gpt.api.answers import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Choice,
    Completion,
    Delta,
    FinishReason,
    FunctionDelta,
    Logprobs,
    PromptTokensDetails,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from run_gpt.api.chat import FunctionCall, ToolCall
from run_gpt.api.schema import ChatRequest, GenerateRequest, Request
from run_gpt.api.timings import Timings
from run_gpt.engine import request as engine_request
from run_gpt.engine.request import TokenEvent
from run_gpt.engine.timing import Timing
from run_gpt.models.tools import ArgumentsPiece, CallPiece, TextPiece, ToolParser, joined
from run_gpt.prompts import Prompts, functions


class AnswerWriter:
    """Writes the answer to one request: as a whole, or event by event.

    Both ways read calls of tools by the same parser, which does not care how a text is cut.
    """

    def __init__(self, name: str, prompts: Prompts, request: Request, prepared: engine_request.Request):
        """`name`: the served model's."""
        self._name, self._prompts = name, prompts
        self._request, self._prepared = request, prepared
        self._created = int(time.time())
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._ended: list[Timing] = []
        self._functions = functions(request) if isinstance(request, ChatRequest) else []
        self._begun: set[int] = set()
        self._parsers: dict[int, ToolParser] = {}

    def count(self, events: Sequence[TokenEvent]) -> None:
        """Count these events' tokens in `usage`; what was reused of the prompt is what the first sequence reused."""
        self._completion_tokens += sum(event.tokens for event in events)
        for event in events:
            if event.index == 0:
                self._cached_tokens = event.cached_tokens
            if event.timing is not None:
                self._ended.append(event.timing)

    @property
    def timing(self) -> Timing | None:
        """Of the whole request, once all of its sequences have ended."""
        return Timing.of_all(self._ended) if len(self._ended) == self._prepared.sequences else None

    def answer(self, sequences: Sequence[TokenEvent]) -> Answer:
        """The whole answer; each event is a whole sequence."""
        if isinstance(self._request, GenerateRequest):
            choices = [self._choice(self._request, event, first=True) for event in sequences]
            return Completion(choices=choices, prompt=self._prompts.text(self._request.prompt), **self._common())
        return ChatCompletion(choices=[self._chat_choice(event) for event in sequences], **self._common())

    def chunk(self, event: TokenEvent) -> Answer | None:
        """One event of a stream; None if it has nothing to show yet."""
        first = event.index not in self._begun
        if isinstance(self._request, GenerateRequest):
            choice = self._choice(self._request, event, first=first)
            if not (choice.text or choice.finish_reason or event.logprobs or event.prompt_logprobs):
                return None
            prompt = None if self._begun else self._prompts.text(self._request.prompt)
            self._begun.add(event.index)
            return Completion(choices=[choice], prompt=prompt, **self._common())
        text, calls = self._read(event)
        if not (text or calls or event.finish_reason or event.logprobs):
            return None
        self._begun.add(event.index)
        chunk_choice = ChatChunkChoice(
            index=event.index,
            delta=Delta(role="assistant" if first else None, content=text, tool_calls=calls or None),
            finish_reason=self._finish_reason(event),
            logprobs=self._logprobs(event),
        )
        return ChatCompletionChunk(choices=[chunk_choice], **self._common())

    def _choice(self, request: GenerateRequest, event: TokenEvent, *, first: bool) -> Choice:
        """`first`: with `echo`, the prompt comes before the text."""
        echo = bool(request.echo) and first
        return Choice(
            index=event.index,
            text=(self._prompts.text(request.prompt) if echo else "") + event.text,
            finish_reason=event.finish_reason,
            logprobs=self._logprobs(event, echo=echo),
        )

    def _chat_choice(self, event: TokenEvent) -> ChatChoice:
        text, deltas = self._read(event)
        calls: dict[int, ToolCall] = {}
        for delta in deltas:
            call = calls.get(delta.index)
            name, before = (call.function.name, call.function.arguments) if call else (delta.function.name or "", "")
            function = FunctionCall(name=name, arguments=before + (delta.function.arguments or ""))
            calls[delta.index] = ToolCall(id=call.id if call else delta.id, type="function", function=function)
        message = ChatMessage(content=text or (None if calls else ""), tool_calls=list(calls.values()) or None)
        return ChatChoice(
            index=event.index,
            message=message,
            finish_reason=self._finish_reason(event),
            logprobs=self._logprobs(event),
        )

    def _read(self, event: TokenEvent) -> tuple[str, list[ToolCallDelta]]:
        """What an event adds to a chat's answer: text, and pieces of calls."""
        parser = self._parser(event.index)
        if parser is None:
            return event.text, []
        pieces = parser.push(event.text)
        if event.finish_reason is not None:
            pieces = [*pieces, *parser.finish()]
        text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
        return text, [_call_delta(piece) for piece in joined(pieces) if not isinstance(piece, TextPiece)]

    def _parser(self, index: int) -> ToolParser | None:
        if not isinstance(self._request, ChatRequest) or not self._functions:
            return None
        if index not in self._parsers:
            parallel = self._request.parallel_tool_calls is not False
            self._parsers[index] = self._prompts.tool_format.parser(self._functions, parallel=parallel)
        return self._parsers[index]

    def _finish_reason(self, event: TokenEvent) -> FinishReason | None:
        parser = self._parser(event.index)
        called = parser is not None and parser.called
        return "tool_calls" if called and event.finish_reason == "stop" else event.finish_reason

    def _common(self) -> dict[str, Any]:
        prompt_tokens = len(self._prepared.prompt_ids)
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=prompt_tokens + self._completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached_tokens),
        )
        about = {"id": self._prepared.id, "created": self._created, "model": self._name, "usage": usage}
        return about | {"timings": self._timings()} if self._request.timings else about

    def _timings(self) -> Timings | None:
        """As the wire shows them, once the request has ended."""
        if (timing := self.timing) is None:
            return None
        prefilled = len(self._prepared.prompt_ids) - self._cached_tokens
        # The first token of each came with the prefill, which beam search has not.
        decoded = self._completion_tokens - (0 if self._request.beam_search else len(self._ended))
        return Timings(
            queue_seconds=timing.queue_seconds,
            prefill_seconds=timing.prefill_seconds,
            decode_seconds=timing.decode_seconds,
            total_seconds=timing.total_seconds,
            prompt_tokens_per_second=prefilled / timing.prefill_seconds if timing.prefill_seconds else None,
            generation_tokens_per_second=decoded / timing.decode_seconds if timing.decode_seconds else None,
            drafted_tokens=timing.drafted,
            accepted_tokens=timing.accepted,
        )

    def _logprobs(self, event: TokenEvent, *, echo: bool = False) -> Logprobs | None:
        if self._request.logprobs is None:
            return None
        content = [self._token_logprob(token.token_id, token.logprob, token.top) for token in event.logprobs]
        if echo:
            scored = [self._token_logprob(token.token_id, token.logprob, token.top) for token in event.prompt_logprobs]
            content = [self._token_logprob(self._prepared.prompt_ids[0], None, ()), *scored, *content]
        return Logprobs(content=content)

    def _token_logprob(self, token_id: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        """A token's log-probability as the wire shows it."""
        likeliest = [TopLogprob(logprob=value, **self._token(i)) for i, value in top]
        return TokenLogprob(logprob=logprob, top_logprobs=likeliest, **self._token(token_id))

    def _token(self, token_id: int) -> dict[str, Any]:
        return {"token": self._prompts.token_text(token_id), "bytes": list(self._prompts.token_bytes(token_id))}


def _call_delta(piece: CallPiece | ArgumentsPiece) -> ToolCallDelta:
    if isinstance(piece, ArgumentsPiece):
        return ToolCallDelta(index=piece.index, function=FunctionDelta(arguments=piece.text))
    function = FunctionDelta(name=piece.name, arguments="")
    return ToolCallDelta(index=piece.index, id=f"call_{secrets.token_hex(12)}", type="function", function=function)


def mean_logprob(sequence: TokenEvent) -> float:
    """By which the best of several sequences is told."""
    return sum(token.logprob for token in sequence.logprobs) / max(len(sequence.logprobs), 1)
