"""Pieces: the new parts of a streamed answer, in the form that goes from the engine's process to every endpoint.

They are msgspec structs, which take a tenth of the time of pydantic's to make, to write and to read. For clients,
`native_stream.py` converts them.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from run_gpt.api.answers import FinishReason

Parts = list[bytes]
"""Parts of an answer that are written once and then passed on: JSON of some tokens, or a vector's 32-bit floats."""


class Head(Struct, array_like=True, frozen=True):
    """The part that all events of an answer have in common; it is sent before the first piece."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    prompt_tokens: int
    prompt: str | None = None
    """Text of a prompt that was given as token ids."""


class Likely(Struct, frozen=True, gc=False):
    """A token that was likely in this place, as answers have it."""

    token: str
    logprob: float
    bytes: list[int]


class Token(Struct, frozen=True, gc=False):
    """A token with its log-probability before any penalty or temperature, as answers have it."""

    token: str
    logprob: float | None
    """None for the first token of a prompt: no token precedes it."""
    bytes: list[int]
    top_logprobs: list[Likely] = []
    """Likeliest tokens in this place."""


_encode = msgspec.json.Encoder().encode


def tokens_part(tokens: Sequence[Token]) -> bytes:
    """Return the JSON of tokens, separated by commas."""
    return _encode(tokens)[1:-1]


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
    logprobs: Parts | None = None
    """Tokens with log-probabilities, see `tokens_part`; None unless the request asks for them."""
    timings: Mapping[str, float | None] | None = None
    """Fields of `Timings`, in the last piece of a request that asks for them."""
    reasoning: str = ""
    """New text of the model's thinking. It precedes `text` and `calls`."""
    reasoning_tokens: int | None = None
    """Number of the sequence's tokens that are thinking, in its last piece; None: the model does not think apart."""
    stop: str | None = None
    """Text of the request's `stop` that ended the sequence, in its last piece."""

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
        self.finish, self.stop = later.finish, later.stop
        self.cached = self.cached or later.cached
        self.timings = later.timings
        self.calls = joined_calls(self.calls, later.calls)
        if self.logprobs is None:
            self.logprobs = later.logprobs
        elif later.logprobs is not None:
            self.logprobs += later.logprobs

    def split(self, most_bytes: int) -> list["Piece"]:
        """Return pieces that say the same, each with about so many bytes of log-probabilities at most."""
        groups, size = [Parts()], 0
        for part in self.logprobs or ():
            if groups[-1] and size + len(part) > most_bytes:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += len(part)
        if len(groups) == 1:
            return [self]
        more = [Piece(self.index, "", 0, logprobs=group) for group in groups[1:]]
        more[-1].finish, more[-1].timings, more[-1].stop = self.finish, self.timings, self.stop
        self.logprobs, self.finish, self.timings, self.stop = groups[0], None, None, None
        return [self, *more]


def joined_calls(calls: Sequence[CallPiece], later: Sequence[CallPiece]) -> list[CallPiece]:
    """Join two lists of parts of calls to one part for each call, as clients expect it of one event."""
    joined = list(calls)
    for part in later:
        if joined and part.id is None and joined[-1].index == part.index:
            last = joined.pop()
            part = CallPiece(last.index, last.arguments + part.arguments, last.id, last.name)
        joined.append(part)
    return joined


class Whole(Struct, array_like=True, frozen=True):
    """A whole answer."""

    json: bytes
    parts: list[Parts] = []
    """Parts that the JSON leaves out: log-probabilities of each choice, or each vector (see api.long_parts)."""

    def split(self, most_bytes: int) -> "list[Whole]":
        """Return answers that say the same together, each with about so many bytes of parts at most.

        Only the first one has the JSON. Each one has all places, most of them without parts.
        """
        pieces, parts, size = [], [Parts() for _ in self.parts], 0
        for place, own in enumerate(self.parts):
            for part in own:
                if size and size + len(part) > most_bytes:
                    pieces.append(parts)
                    parts, size = [Parts() for _ in range(len(self.parts))], 0
                parts[place].append(part)
                size += len(part)
        return [Whole(b"" if i else self.json, one) for i, one in enumerate([*pieces, parts])]


Update = Head | Piece | Whole | bytes
"""One message about an answer; bytes are a body of JSON that is not a piece of text."""


class Pending:
    """Updates that wait for a reader. Pieces of one sequence are merged: the size never exceeds that of the answer."""

    __slots__ = ("_others", "_pieces")

    def __init__(self) -> None:
        self._others: list[Head | Whole | bytes] = []
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
