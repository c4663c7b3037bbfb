"""Scanner that reads JSON character by character, and holds the characters until their meaning is known."""

import json
import re
import string
from collections.abc import Callable, Generator
from typing import TypeVar

_HALF = re.compile(r"\\u[dD][89abAB]..")  # the first of two escapes that are one character

BLANKS = " \t\r\n"
"""White space of JSON."""

T = TypeVar("T")
Scan = Generator[None, str, T]
"""Step of reading: a generator that waits for characters and returns what it has read."""

Give = Callable[[str], None]


class Scanner:
    """Scanner of a text's characters. It uses generators, so the way in which the text is cut cannot matter.

    `char` is the next character, not taken yet; it is empty at the end of the text, after which no generator waits.
    `held` has the characters that were taken and have no meaning yet. Each method below is called with `yield from`.
    """

    def __init__(self) -> None:
        self.char = ""
        self.held: list[str] = []

    def take(self, give: Give | None = None) -> Scan[str]:
        """Take and return the next character, empty at the end. `give` gets it before the following one is awaited."""
        char = self.char
        if char:
            self.held.append(char)
            if give is not None:
                give(char)
            self.char = yield
        return char

    def blanks(self) -> Scan[None]:
        """Take white space."""
        while self.char.isspace():
            yield from self.take()

    def literal(self, *texts: str) -> Scan[str | None]:
        """Take and return one of `texts`; None if none comes, with its beginning taken. No text may begin another."""
        at = 0
        while self.char and (texts := tuple(text for text in texts if text[at] == self.char)):
            yield from self.take()
            at += 1
            if len(texts[0]) == at:
                return texts[0]
        return None

    def string(self) -> Scan[str | None]:
        """Take a JSON string; return its text, or None if there is no string."""
        raw = ""
        escaped = False
        while self.char and (raw or self.char == '"'):
            char = yield from self.take()
            if char == '"' and raw and not escaped:
                return text_of(raw)
            escaped = char == "\\" and not escaped
            raw += char
        return None

    def value(self, give: Give, end: str = "") -> Scan[None]:
        """Take a JSON value and pass its raw text on as it comes; for a string, its decoded text.

        Outside of strings the character `end` cuts the value short, as the end of the text does anywhere.
        """
        if self.char == '"':
            yield from self._decoded(give)
        elif self.char in ("{", "["):
            yield from self._nested(give, end)
        else:
            while self.char and self.char not in f",}}]{end}" and not self.char.isspace():
                yield from self.take(give)

    def _nested(self, give: Give, end: str) -> Scan[None]:
        """Take all characters up to the bracket that closes the first one."""
        depth, quoted, escaped, doubled = 0, False, False, False
        while self.char and (quoted or self.char != end):
            char = yield from self.take(give)
            if quoted:
                quoted, escaped = escaped or char != '"', char == "\\" and not escaped
            elif char == '"':
                quoted = True
            elif char in "{[":
                depth += 1
                if depth == 1 and char == "{" == self.char:  # some templates show doubled braces
                    doubled = True
                    yield from self.take()
            elif char in "}]":
                depth -= 1
                if depth == 0:
                    if doubled and self.char == "}":
                        yield from self.take()
                    return

    def _decoded(self, give: Give) -> Scan[None]:
        """Take a string, and pass its text on."""
        yield from self.take()
        while self.char and self.char != '"':
            if self.char == "\\":
                give((yield from self._escapes()))
            else:
                yield from self.take(give)
        yield from self.take()

    def _escapes(self) -> Scan[str]:
        """Take an escape and those that may belong to it; return their text, or the escapes if they are invalid."""
        taken: list[str] = []
        while self.char == "\\" and (not taken or _HALF.fullmatch(taken[-1])):
            escape = (yield from self.take()) + (yield from self.take())
            while self.char and escape[1:2] == "u" and len(escape) < 6 and self.char in string.hexdigits:
                escape += yield from self.take()
            taken.append(escape)
        raw = "".join(taken)
        try:
            text = str(json.loads(f'"{raw}"'))
        except ValueError:
            return raw
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair is not valid UTF-8


def text_of(raw: str) -> str | None:
    """Return the text of a JSON string without its last quote; None if it is none."""
    try:
        return str(json.loads(f'{raw}"', strict=False))
    except ValueError:
        return None
