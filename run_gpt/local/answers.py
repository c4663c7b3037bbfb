"""Conversion of engine events to pieces of answers: tool calls, texts of tokens, and timings."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from run_gpt.api.answers import FinishReason
from run_gpt.api.pieces import CallPiece, Head, Likely, Parts, Piece, Token, joined_calls, tokens_part
from run_gpt.api.schema import ChatRequest, GenerateRequest, Request
from run_gpt.api.timings import Timings
from run_gpt.engine import request as engine_request
from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.engine.timing import Timing
from run_gpt.errors import RequestError
from run_gpt.local.prompts import Prompts, functions
from run_gpt.models import tools
from run_gpt.models.tools import ArgumentsPiece, TextPiece, ToolParser, joined

OnTiming = Callable[[Timing], None]


class Sink(Protocol):
    """Receiver of the answer to one request, on the event loop of the request."""

    def put(self, update: Head | Piece) -> None:
        """Receive the head, or a piece."""

    def end(self, error: RequestError | None) -> None:
        """Receive the end, once, after everything else."""


@dataclass
class Summary:
    """Facts about an answer so far."""

    id: str
    model: str
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Number of prompt tokens that the first sequence reused."""
    timing: Timing | None = None
    """Times of the request; set once all sequences have ended."""


class PieceWriter:
    """Writer of the pieces of one request's answer. Its events may be single steps or whole sequences."""

    def __init__(self, name: str, prompts: Prompts, request: Request, prepared: engine_request.Request):
        """`name`: name of the served model."""
        self.summary = Summary(prepared.id, name, len(prepared.prompt_ids))
        self.finish_reasons: dict[int, FinishReason] = {}
        """Finish reasons of the sequences that have ended, by index."""
        self._prompts, self._request, self._prepared = prompts, request, prepared
        self._created = int(time.time())
        self._ended: list[Timing] = []
        self._functions = functions(request) if isinstance(request, ChatRequest) else []
        self._thoughts = prompts.reasoning.thoughts(request, prepared.prompt_ids)
        self._echo = isinstance(request, GenerateRequest) and bool(request.echo)
        self._begun: set[int] = set()
        self._parsers: dict[int, ToolParser] = {}
        self._left: int | None = None
        """Bytes that the tokens at a stop sequence have left, while they are named."""

    @property
    def head(self) -> Head:
        """Head of the answer."""
        about, request = self.summary, self._request
        given = request.prompt if isinstance(request, GenerateRequest) else ""
        prompt = None if isinstance(given, str) else self._prompts.text(given)
        return Head(about.id, self._created, about.model, about.prompt_tokens, prompt)

    def piece(self, event: TokenEvent, tokens: Parts | None = None) -> Piece:
        """Make the piece of an event; with `echo`, the first piece of each sequence begins with the prompt.

        `tokens`: result of `named` for what `listed` gives; None: it is made here.
        """
        if tokens is None and self._request.logprobs is not None:
            listed = self.listed(event)
            tokens = [part for part in (self.named(listed),) if part]
        first = event.index not in self._begun
        echo = self._echo and first
        self._begun.add(event.index)
        self._count(event)
        thought, text = ("", event.text) if self._thoughts is None else self._thoughts.split(event)
        text, calls = self._read(event, text)
        if echo:
            text = self._prompts.text(self._request.prompt) + text  # type: ignore[union-attr]
            tokens = None if tokens is None else [self._first_token(), *tokens]
        return Piece(
            index=event.index,
            text=text,
            tokens=event.tokens,
            finish=None if event.finish_reason is None else self._finish(event.index, event.finish_reason),
            cached=event.cached_tokens if first and not event.index else 0,
            calls=calls,
            logprobs=tokens,
            timings=self._timings() if self._request.timings else None,
            reasoning=thought,
            reasoning_tokens=None if self._thoughts is None else self._thoughts.count(event),
            stop=event.stop if event.stop is not None and event.stop in self._request.stops else None,
        )

    def _count(self, event: TokenEvent) -> None:
        summary = self.summary
        summary.completion_tokens += event.tokens
        if not event.index:
            summary.cached_tokens = event.cached_tokens
        if event.timing is not None:
            self._ended.append(event.timing)
            if len(self._ended) == self._prepared.sequences:
                summary.timing = Timing.of_all(self._ended)

    def _read(self, event: TokenEvent, text: str) -> tuple[str, list[CallPiece]]:
        """Split an event's content into text and pieces of tool calls."""
        if not self._functions:
            return text, []
        parser = self._parser(event.index)
        pieces = parser.push(text)
        if event.finish_reason is not None:
            pieces = [*pieces, *parser.finish()]
        text = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
        return text, joined_calls([], [_call(piece) for piece in joined(pieces) if not isinstance(piece, TextPiece)])

    def _parser(self, index: int) -> ToolParser:
        if index not in self._parsers:
            assert isinstance(self._request, ChatRequest)
            self._parsers[index] = self._prompts.parser(self._request)
        return self._parsers[index]

    def _finish(self, index: int, reason: engine_request.FinishReason) -> FinishReason:
        called = index in self._parsers and self._parsers[index].called
        self.finish_reasons[index] = "tool_calls" if called and reason == "stop" else reason
        return self.finish_reasons[index]

    def _timings(self) -> dict[str, float | None] | None:
        """Return the fields of `Timings`, once the request has ended."""
        summary, timing = self.summary, self.summary.timing
        if timing is None:
            return None
        prefilled = summary.prompt_tokens - summary.cached_tokens
        # The first token of each sequence came with the prefill, which beam search does not have.
        decoded = summary.completion_tokens - (0 if self._request.beam_search else len(self._ended))
        return Timings(
            queue_seconds=timing.queue_seconds,
            prefill_seconds=timing.prefill_seconds,
            decode_seconds=timing.decode_seconds,
            total_seconds=timing.total_seconds,
            prompt_tokens_per_second=prefilled / timing.prefill_seconds if timing.prefill_seconds else None,
            generation_tokens_per_second=decoded / timing.decode_seconds if timing.decode_seconds else None,
            drafted_tokens=timing.drafted,
            accepted_tokens=timing.accepted,
        ).model_dump()

    def listed(self, event: TokenEvent) -> Sequence[TokenLogprob]:
        """Return the tokens whose log-probabilities the piece of this event shows: with `echo` the prompt's, too.

        Tokens that end the answer are not shown; one that is shown in part has the text of that part.
        """
        self._left = None
        shown = [token for token in event.logprobs if token.shown != 0]
        if self._thoughts is not None:
            shown = self._thoughts.shown(event, shown, lambda token: self._prompts.token(token.token_id)[0])
        return [*event.prompt_logprobs, *shown] if self._echo and event.index not in self._begun else shown

    def named(self, tokens: Sequence[TokenLogprob]) -> bytes:
        """Return a part of tokens with their texts and bytes, empty if none is shown. Any thread may call it."""
        token = self._prompts.token
        named = []
        for one in tokens:
            likeliest = [Likely(text, value, data) for i, value in one.top for text, data in (token(i),)]
            text, data = token(one.token_id)
            if one.shown is not None:
                text, data = self._part(data, one.shown)
            if data or one.shown is None:
                named.append(Token(text, one.logprob, data, likeliest))
        return tokens_part(named)

    def _part(self, data: list[int], shown: int) -> tuple[str, list[int]]:
        """Return the part of a token's text that is shown. `shown`: see TokenLogprob."""
        left = shown if self._left is None else self._left
        data = data[:left]
        self._left = left - len(data)
        return bytes(data).decode(errors="replace"), data

    def _first_token(self) -> bytes:
        """Return a part of the prompt's first token, which no token precedes."""
        text, data = self._prompts.token(self._prepared.prompt_ids[0])
        return tokens_part([Token(text, None, data)])


class PieceOutlet:
    """Outlet that turns a running request's events into pieces for a sink (see engine.interface.Outlet)."""

    def __init__(self, writer: PieceWriter, sink: Sink, on_timing: OnTiming):
        self.writer, self._sink, self._on_timing = writer, sink, on_timing
        self._begun = False
        self.over = False
        """True once the request has ended."""
        self._held: dict[int, Piece] = {}
        """Pieces that show nothing yet, by sequence."""

    def receive(self, event: TokenEvent, tokens: Parts | None = None) -> None:
        """Pass an event's piece to the sink once it shows anything, and the head before the first piece.

        `tokens`: see PieceWriter.piece.
        """
        piece = self.writer.piece(event, tokens)
        if event.timing is not None and (timing := self.writer.summary.timing) is not None:
            self._on_timing(timing)
        if (held := self._held.pop(event.index, None)) is not None:
            held.add(piece)
            piece = held
        if not piece.shows_anything:
            self._held[event.index] = piece
            return
        if not self._begun:
            self._begun = True
            self._sink.put(self.writer.head)
        self._sink.put(piece)

    def ended(self, error: RequestError | None) -> None:
        """End the sink."""
        self.over = True
        self._sink.end(error)


class WholeOutlet:
    """Outlet that collects the sequences of a request that is answered as a whole (see engine.interface.Outlet)."""

    def __init__(self, sequences: int):
        self._sequences = [TokenEvent(index, "", 0) for index in range(sequences)]
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = False
        """True once the request has ended."""

    def receive(self, event: TokenEvent) -> None:
        """Add an event to its sequence."""
        self._sequences[event.index] += event

    def ended(self, error: RequestError | None) -> None:
        """Let `complete` return, or raise the error."""
        self.over = True
        settle(self._ended, error)

    async def complete(self) -> list[TokenEvent]:
        """Return the sequences once all have ended. Raises the error that the request ended with."""
        await self._ended
        return self._sequences


def settle(future: "asyncio.Future[None]", error: RequestError | None) -> None:
    """End a future, if its reader waits for it."""
    if future.done():  # its reader is gone
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _call(piece: tools.CallPiece | ArgumentsPiece) -> CallPiece:
    if isinstance(piece, ArgumentsPiece):
        return CallPiece(piece.index, piece.text)
    return CallPiece(piece.index, "", f"call_{secrets.token_hex(12)}", piece.name)


def likeliest(sequences: Sequence[TokenEvent]) -> list[int]:
    """Return the indices of the sequences, sorted by mean log-probability, the greatest first."""

    def mean(index: int) -> float:
        logprobs = sequences[index].logprobs
        return sum(token.logprob for token in logprobs) / max(len(logprobs), 1)

    return sorted(range(len(sequences)), key=mean, reverse=True)
