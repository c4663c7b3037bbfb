"""Parser that splits a model's answer into text and calls, piece by piece as the answer arrives.

The joined pieces do not depend on how the answer is cut. A call begins only when its name is known, is one of the
request's functions, and its arguments have begun. Anything that does not get so far is text, and no character of it is
lost. After that, the characters belong to the call: an answer that ends in the middle of a call leaves an incomplete
call. White space before and after a call is not text.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from run_gpt.models.tools.function import Function
from run_gpt.models.tools.scanner import Scan, Scanner


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

_ARGUMENTS = ("arguments", "parameters")  # models confuse the two


def _nowhere(text: str) -> None:
    """Discard text: members of a call that are not its name or arguments."""


class ToolParser(Scanner):
    """Parser of one answer: `push` its text as it comes, then `finish`. A subclass for each format defines `answer`."""

    def __init__(self, functions: Iterable[Function], *, parallel: bool, opening: re.Pattern[str] | None = None):
        """Create a parser for calls of `functions`. If `parallel` is false, calls after the first are dropped.

        `opening`, if given, must match the answer up to its first call's name; otherwise the answer has no calls.
        """
        super().__init__()
        self.names = frozenset(function.name for function in functions)
        self._parallel = parallel
        self._opening = opening
        self._calls = 0
        self._pieces: list[Piece] = []
        self._blanks: list[str] = []
        self._after_call = False
        self._finished = False
        self._machine = self._whole()
        next(self._machine)

    @property
    def called(self) -> bool:
        """True when the answer has a call so far."""
        return self._calls > 0

    def push(self, text: str) -> list[Piece]:
        """Parse more text and return the new pieces; text that may be the beginning of a call is returned later."""
        for char in text:
            self._machine.send(char)
        return self._new()

    def finish(self) -> list[Piece]:
        """Return the pieces that were held back; no more pieces come after them."""
        if not self._finished:
            self._finished = True
            with suppress(StopIteration):
                self._machine.send("")
        return self._new()

    def answer(self) -> Scan[None]:
        """Read the answer in the format's form; the remainder is text."""
        raise NotImplementedError

    def show(self) -> None:
        """Turn the held characters into text."""
        for char in self.held:
            if not char.isspace():
                self._pieces.extend(TextPiece(text) for text in (*self._blanks, char))
                self._blanks.clear()
                self._after_call = False
            elif not self._after_call:
                self._blanks.append(char)
        self.held.clear()

    def settle(self) -> None:
        """Turn the characters held after a call into text; drop them at the answer's end, as a call's end cut off."""
        if self.char:
            self.show()
        self.held.clear()

    def find(self, marker: str) -> Scan[bool]:
        """Read text up to `marker`, which is then held; return False at the end of the answer."""
        while self.char:
            if self.char != marker[0]:
                yield from self.take(self._show)
            elif (yield from self.literal(marker)):
                return True
            else:
                self.show()
        return False

    def objects(self) -> Scan[None]:
        """Read one call after the other, with white space or a semicolon between them."""
        while self.char == "{" and (yield from self.call()):
            yield from self.close()
            yield from self.blanks()
            if self.char == ";":
                yield from self.take()
                yield from self.blanks()
            if not self.char:
                self.held.clear()
        self.show()

    def listed(self) -> Scan[None]:
        """Read a JSON list of calls."""
        yield from self.take()
        yield from self.blanks()
        while self.char == "{" and (yield from self.call()):
            yield from self.close()
            yield from self.blanks()
            if self.char == ",":
                yield from self.take()
                yield from self.blanks()
            elif self.char == "]":
                yield from self.take()
                self.held.clear()
                return
            if not self.char:
                self.held.clear()
        self.show()

    def call(self, end: str = "") -> Scan[bool]:
        """Read a call's object up to the end of its arguments; return False if it is no call, with all of it held."""
        name: str | None = None
        arguments: list[str] | None = None
        members = 0
        while (key := (yield from self._key())) is not None:
            members += 1
            if key == "name":
                name = yield from self.string()
                if name not in self.names or not self._is_opening():
                    return False
            elif key in _ARGUMENTS and arguments is None:
                if name is not None:
                    return (yield from self.run(name, end))
                if not self._at_value():
                    return False
                arguments = []
                yield from self.value(arguments.append, end)
            else:
                yield from self.value(_nowhere, end)
            yield from self.blanks()
            if arguments is None and members == 1 and self.char == "}":
                arguments = ["{}"]  # a name alone calls a function without arguments
            if name is not None and arguments is not None:
                self._begin(name)
                self._give("".join(arguments))
                return True
        return False

    def run(self, name: str, end: str = "") -> Scan[bool]:
        """Begin a call and read its arguments; return False if no value comes."""
        if not self._at_value():
            return False
        self._begin(name)
        yield from self.value(self._give, end)
        return True

    def close(self, end: str = "") -> Scan[None]:
        """Read the rest of a call's object after its arguments."""
        yield from self.blanks()
        while self.char == "," and (yield from self._key()) is not None:
            yield from self.value(_nowhere, end)
            yield from self.blanks()
        if self.char == "}":
            yield from self.take()
            self.held.clear()
        else:
            self.settle()

    def _key(self) -> Scan[str | None]:
        """Take the brace or comma before a member, and its name up to its value; return None if there is no member."""
        if self.char not in ("{", ","):
            return None
        yield from self.take()
        yield from self.blanks()
        key = yield from self.string()
        yield from self.blanks()
        if key is None or self.char != ":":
            return None
        yield from self.take()
        yield from self.blanks()
        return key

    def _is_opening(self) -> bool:
        return self._opening is None or self.called or bool(self._opening.fullmatch("".join(self.held)))

    def _at_value(self) -> bool:
        return self.char in ("{", "[", '"', "-") or self.char.isalnum()

    def _begin(self, name: str) -> None:
        self.held.clear()
        self._blanks.clear()
        self._after_call = True
        if self._parallel or not self._calls:
            self._pieces.append(CallPiece(self._calls, name))
        self._calls += 1

    def _give(self, text: str) -> None:
        """Pass arguments on; they are no longer held."""
        self.held.clear()
        if text and (self._parallel or self._calls == 1):
            self._pieces.append(ArgumentsPiece(self._calls - 1, text))

    def _show(self, _: str) -> None:
        self.show()

    def _whole(self) -> Scan[None]:
        self.char = yield
        yield from self.answer()
        while self.char:
            yield from self.take(self._show)
        self._pieces.extend(TextPiece(text) for text in self._blanks)

    def _new(self) -> list[Piece]:
        """Return the pieces since the last call, with neighbours of one kind joined."""
        pieces, self._pieces = self._pieces, []
        return joined(pieces)


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
