"""Long parts of whole answers and events, log-probabilities and vectors, which stay text beside pydantic's objects.

One answer may have a million log-probabilities or numbers of vectors. As objects they would take an event loop for
seconds. So an executor leaves them out of an answer, and sends them as parts beside it. The gateway puts a mark in the
place of each part, makes its answer of that, and fills the parts into the JSON.
"""

import re
import secrets
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from run_gpt.api.answers import Answer, Body, Logprobs
from run_gpt.api.embeddings import Embeddings, vector_of
from run_gpt.api.pieces import Parts
from run_gpt.api.request import AnyRequest

PartWriter = Callable[[Hashable, Sequence[bytes]], bytes]
"""Function that writes the parts in one place as JSON. Its first argument names the sequence that they belong to."""

_MARK = f"rungpt-part-{secrets.token_hex(16)}-"  # random, so that no text equals it
_PLACES = re.compile(
    rb'\{"tokens":\["%(mark)b(\d+)"\],"token_logprobs":\[null\],"top_logprobs":\[null\],"text_offset":\[\d+\]\}'
    rb'|\{"token":"%(mark)b(\d+)","logprob":null,"top_logprobs":\[\]\}|"%(mark)b(\d+)"' % {b"mark": _MARK.encode()}
)
"""A mark as a completion's log-probabilities, as a token, and as a vector."""


def restored(request: AnyRequest, answer: Answer, parts: Sequence[Parts]) -> Answer:
    """Return the answer to a native request with its parts as objects."""
    if isinstance(answer, Embeddings):
        for item, (vector,) in zip(answer.data, parts, strict=False):
            item.embedding = vector_of(vector, getattr(request, "encoding_format", None))
        return answer
    for choice, own in zip(getattr(answer, "choices", ()), parts, strict=False):
        if choice.logprobs is not None:
            choice.logprobs = logprobs_of(own)
    return answer


def logprobs_of(parts: Sequence[bytes]) -> Logprobs:
    """Return log-probabilities as objects."""
    return Logprobs.model_validate_json(b'{"content":[' + b",".join(parts) + b"]}")


@dataclass(frozen=True)
class Filled:
    """A whole answer as JSON."""

    kind: type[Body]
    json: bytes

    def to_json(self) -> bytes:
        """Return the wire's JSON."""
        return self.json

    def read(self) -> Body:
        """Return the answer as an object."""
        return self.kind.model_validate_json(self.json)


class Unread:
    """The parts of one answer that are not read, each with a mark that stands in its place until `fill`."""

    def __init__(self, request: AnyRequest):
        """`request`: the client's."""
        self._write: PartWriter = request.part_writer()
        self._repeats = request.REPEATS_PARTS
        self._parts: dict[int, tuple[Hashable, Parts]] = {}
        self._count = 0

    @property
    def size(self) -> int:
        """Bytes of all parts that were not filled in yet."""
        return sum(len(part) for _, parts in self._parts.values() for part in parts)

    def take(self, which: int, answer: Answer, parts: Sequence[Parts]) -> None:
        """Take the parts of the answer to native request number `which`, and put marks in their places."""
        if isinstance(answer, Embeddings):
            for item, own in zip(answer.data, parts, strict=False):
                item.embedding = self._mark((which, item.index), own)
            return
        for choice, own in zip(getattr(answer, "choices", ()), parts, strict=False):
            if own:
                choice.logprobs = logprobs_of([self.token((which, choice.index), own)])

    def token(self, sequence: Hashable, parts: Parts) -> bytes:
        """Take parts of a sequence's log-probabilities; return the part that stands for them."""
        return b'{"token":"%b","logprob":null,"top_logprobs":[]}' % self._mark(sequence, parts).encode()

    def _mark(self, sequence: Hashable, parts: Parts) -> str:
        self._count += 1
        self._parts[self._count] = sequence, parts
        return f"{_MARK}{self._count}"

    def fill(self, written: bytes) -> bytes:
        """Return the JSON with the parts in place of their marks."""
        return _PLACES.sub(self._text, written) if self._parts else written

    def _text(self, found: re.Match[Any]) -> bytes:
        number = int(found[found.lastindex or 0])
        sequence, parts = self._parts[number] if self._repeats else self._parts.pop(number)
        return self._write(sequence, parts)
