"""Pieces: the new parts of a streamed answer, in the form that goes from the engine's process to every endpoint.

They are msgspec structs, which take a tenth of the time of pydantic's to make, to write and to read. For clients,
`native_stream.py` converts them.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from run_gpt.api.answers import FinishReason

Likely = tuple[str, float, bytes]
"""Text of a token, its log-probability, its bytes."""


class Head(Struct, array_like=True, frozen=True):
    """The part that all events of an answer have in common; it is sent before the first piece."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    prompt_tokens: int
    prompt: str | None = None
    """Text of a prompt that was given as token ids."""


class Token(Struct, array_like=True, frozen=True):
    """A token with its log-probability before any penalty or temperature."""

    text: str
    logprob: float | None
    """None for the first token of a prompt: no token precedes it."""
    bytes: bytes
    top: list[Likely] = []
    """Likeliest tokens in this place."""


class CallPiece(Struct, array_like=True, frozen=True):
    """New part of one call of a tool: its id and name, or more of its arguments."""

    index: int
    """Number of the call in its answer, from 0."""
    arguments: str = ""
    id: str | None = None
    """Set in the first piece of a call."""
    name: str | None = None
    """Set in the first piece of a call."""


class Piece(Struct, array_like=True):
    """New part of one sequence of an answer, from one engine step or from several that were merged."""

    index: int
    """Number of the sequence, from 0."""
    text: str
    tokens: int
    """Number of new tokens of the answer."""
    finish: FinishReason | None = None
    """Set in the last piece of a sequence."""
    cached: int = 0
    """Number of prompt tokens reused from the KV cache, in the first piece of sequence 0."""
    calls: list[CallPiece] = []
    logprobs: list[Token] | None = None
    """None unless the request asks for them."""
    timings: Mapping[str, float | None] | None = None
    """Fields of `Timings`, in the last piece of a request that asks for them."""
    reasoning: str = ""
    """New text of the model's thinking. It precedes `text` and `calls`."""
    reasoning_tokens: int | None = None
    """Number of the sequence's tokens that are thinking, in its last piece; None: the model does not think apart."""

    @property
    def is_plain(self) -> bool:
        """True for a piece that adds only text, or only thinking."""
        if self.reasoning and self.text:
            return False
        return self.finish is None and not self.calls and self.logprobs is None and not self.cached

    @property
    def shows_anything(self) -> bool:
        """True for a piece that a client can see."""
        return bool(self.text or self.finish or self.calls or self.logprobs or self.reasoning)

    def add(self, later: "Piece") -> None:
        """Take over a later piece of the same sequence."""
        self.text += later.text
        self.reasoning += later.reasoning
        self.reasoning_tokens = later.reasoning_tokens
        self.tokens += later.tokens
        self.finish = later.finish
        self.cached = self.cached or later.cached
        self.timings = later.timings
        self.calls = joined_calls(self.calls, later.calls)
        if self.logprobs is None:
            self.logprobs = later.logprobs
        elif later.logprobs is not None:
            self.logprobs += later.logprobs


def joined_calls(calls: Sequence[CallPiece], later: Sequence[CallPiece]) -> list[CallPiece]:
    """Join two lists of parts of calls to one part for each call, as clients expect it of one event."""
    joined = list(calls)
    for part in later:
        if joined and part.id is None and joined[-1].index == part.index:
            last = joined.pop()
            part = CallPiece(last.index, last.arguments + part.arguments, last.id, last.name)
        joined.append(part)
    return joined


Update = Head | Piece | bytes
"""One message about an answer; bytes are a body of JSON that is not a piece of text."""


class Pending:
    """Updates that wait for a reader. Pieces of one sequence are merged: the size never exceeds that of the answer."""

    __slots__ = ("_others", "_pieces")

    def __init__(self) -> None:
        self._others: list[Head | bytes] = []
        self._pieces: dict[int, Piece] = {}

    def put(self, update: Update) -> None:
        """Add an update. This object then owns the piece, and may change it."""
        if not isinstance(update, Piece):
            self._others.append(update)
        elif (earlier := self._pieces.get(update.index)) is None:
            self._pieces[update.index] = update
        else:
            earlier.add(update)

    def take(self) -> list[Update]:
        """Remove and return all updates. Heads and bodies come first."""
        if self._others:
            updates: list[Update] = [*self._others, *self._pieces.values()]
            self._others = []
        else:
            updates = [*self._pieces.values()]
        self._pieces = {}
        return updates

    def __bool__(self) -> bool:
        """Return True when there is anything to take."""
        return bool(self._pieces or self._others)
