"""Parser that splits a model's answer into text and calls, piece by piece as the answer arrives.

The joined pieces do not depend on how the answer is cut. A call begins only when its name is known, is one of the
request's functions, and its arguments have begun. Anything that does not get so far is text, and no character of it is
lost. After that, the characters belong to the call: an answer that ends in the middle of a call leaves an incomplete
call. White space before and after a call is not text.
"""

import re
from collections.abc import Iterable
from contextlib import suppress

from run_gpt.models.tools.function import Function
from run_gpt.models.tools.pieces import ArgumentsPiece, CallPiece, Piece, TextPiece, joined
from run_gpt.models.tools.scanner import BLANKS, Scan, Scanner


class ToolParser(Scanner):
    """Parser of one answer: `push` its text as it comes, then `finish`. A subclass for each format defines `answer`."""

    def __init__(
        self,
        functions: Iterable[Function],
        *,
        parallel: bool,
        opening: re.Pattern[str] | None = None,
        once: bool = False,
    ):
        """Create a parser for calls of `functions`. If `parallel` is false, calls after the first are dropped.

        `opening`, if given, must match the end of the text up to the name of a first call that no marker precedes;
        otherwise it is no call. If `once`, a call that is equal to an earlier one is dropped.
        """
        super().__init__()
        self.functions = {function.name: function for function in functions}
        self.names = frozenset(self.functions)
        self.repeated = False
        """True when the answer has a complete call, dropped, that is equal to an earlier one."""
        self._parallel = parallel
        self._opening = opening
        self._once = once
        self._made: list[tuple[str, str]] = []
        self._last: tuple[str, list[str]] = "", []
        self._length = 0
        self._equal: list[str] = []  # arguments of earlier calls to which the last one is equal so far
        self._calls = 0
        self._pieces: list[Piece] = []
        self._blanks: list[str] = []
        self._before = ""
        self._after_blank = True
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
        """Turn the held characters into text; after a call that was made again, there is none."""
        for char in () if self.repeated else self.held:
            self._after_blank = char in BLANKS
            if not self._after_blank:
                self._before = self._before[-1:] + char
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

    @property
    def at_value(self) -> bool:
        """True when a JSON value, other than one within another, may begin here.

        White space or nothing comes before it, and before that no bracket, comma or colon of an outer value. The
        terminal BEFORE of free_grammar.py says the same.
        """
        before = self._before
        inner = before[-1:] == "[" or before == '":' or (before[1:] == "," and before[0] in '}]"')
        return not before or (self._after_blank and not inner)

    def begin(self, name: str) -> None:
        """Begin a call; what is held belongs to it."""
        self.held.clear()
        self._blanks.clear()
        self._before, self._after_call = "", True
        self._calls += 1
        self._last, self._length = (name, []), 0
        self._equal = [text for one, text in self._made if one == name]
        if not self._equal:
            self._pass_on(CallPiece(self._calls - 1, name))

    def give(self, text: str) -> None:
        """Pass arguments on; they are no longer held."""
        self.held.clear()
        if self._equal:
            self._equal = [made for made in self._equal if made.startswith(text, self._length)]
            self._last[1].append(text)
            if not self._equal:
                self._pass_on(CallPiece(self._calls - 1, self._last[0]))
                text = "".join(self._last[1])
        elif self._once:
            self._last[1].append(text)
        self._length += len(text)
        if text and not self._equal:
            self._pass_on(ArgumentsPiece(self._calls - 1, text))

    def end_call(self) -> None:
        """End the arguments of the call that began last."""
        if not self._once:
            return
        name, text = self._last[0], "".join(self._last[1])
        if text in self._equal:
            self._calls -= 1
            self.repeated = True
        elif self._equal:  # it was cut
            self._pass_on(CallPiece(self._calls - 1, name))
            self._pass_on(ArgumentsPiece(self._calls - 1, text))
        self._made.append((name, text))
        self._equal = []

    def _pass_on(self, piece: Piece) -> None:
        if self._parallel or self._calls == 1:
            self._pieces.append(piece)

    def is_opening(self) -> bool:
        """Return True if the call whose name is held last may be the answer's first (see `opening`)."""
        return self._opening is None or self.called or bool(self._opening.search("".join(self.held)))

    def show_each(self, _: str) -> None:
        """Turn a character into text as soon as it is taken."""
        self.show()

    def _whole(self) -> Scan[None]:
        self.char = yield
        yield from self.answer()
        while self.char:
            yield from self.take(self.show_each)
        self._pieces.extend(TextPiece(text) for text in self._blanks)

    def _new(self) -> list[Piece]:
        """Return the pieces since the last call, with neighbours of one kind joined."""
        pieces, self._pieces = self._pieces, []
        return joined(pieces)
