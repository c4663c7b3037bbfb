"""Pieces of a model's answer: its text, and its calls as they come."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class TextPiece:
    """Text of the answer's content."""

    text: str


@dataclass(frozen=True)
class CallPiece:
    """Beginning of a call, the `index`th of the answer, from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsPiece:
    """Next part of the arguments of call `index`: the model's own JSON text."""

    index: int
    text: str


Piece = TextPiece | CallPiece | ArgumentsPiece


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Return the same pieces, with neighbours that continue each other joined."""
    result: list[Piece] = []
    for (kind, index), group in groupby(pieces, lambda piece: (type(piece), getattr(piece, "index", 0))):
        if kind is CallPiece:
            result.extend(group)
            continue
        text = "".join(piece.text for piece in group if not isinstance(piece, CallPiece))
        result.append(TextPiece(text) if kind is TextPiece else ArgumentsPiece(index, text))
    return result
