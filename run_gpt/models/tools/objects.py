"""Reading of calls that are JSON objects: one, several, or a list of them, bare or in a fence."""

from collections.abc import Collection, Sequence

from run_gpt.models.tools.parser import ToolParser
from run_gpt.models.tools.scanner import Scan, text_of

ARGUMENTS = ("arguments", "parameters")  # models confuse the two
_NAMES = ("name", "function")
_KEYS = (*_NAMES, *ARGUMENTS, "type", "id")
"""Members that may come up to the arguments; an object with another one before is no call."""
FENCES = {"```": "```", "<tools>": "</tools>", "<tool_call>": "</tool_call>"}
"""Texts that models write around bare calls, by the first one."""

_FENCE_LINE = 32
"""Most characters of a fence's first line that are held back."""


def _nowhere(text: str) -> None:
    """Discard text: members of a call that are not its name or arguments."""


class ObjectParser(ToolParser):
    """Parser with the steps that read objects. `find` also reads the calls that have no marker of the format."""

    _open = 0  # braces of the call that are not closed yet
    _in_code = False  # a fence that has no calls is open

    def find(self, *markers: str) -> Scan[str | None]:
        """Read text, and calls without a marker, up to one of `markers`, which is then held; None at the end."""
        texts = (*markers, *(fence for fence in FENCES if fence not in markers))
        firsts = {text[0] for text in texts}
        begins = firsts | {"{", "["}
        while self.char:
            if self.char not in begins:
                yield from self.take(self.show_each)
                continue
            may_begin = self.at_value
            found = (yield from self.literal(*texts)) if self.char in firsts else None
            if found in markers:
                return found
            if found:
                yield from self._fenced(found)
            elif may_begin and (self.held == ["["] or (not self.held and self.char in ("{", "["))):
                yield from self._bare()
            elif self.held:
                self.show()
            else:
                yield from self.take(self.show_each)
        return None

    def calls(self, cut: str = "") -> Scan[bool]:
        """Read the calls of one value, or of several objects; return True if there is one.

        Characters after the last call are held: all that came without one is, too.
        """
        if self.char == "[" or self.held == ["["]:
            return (yield from self._listed())
        found = False
        while self.char == "{" and (yield from self._call(cut)):
            found = True
            yield from self._close(cut)
            yield from self.blanks()
            if self.char in (";", ","):
                yield from self.take()
                yield from self.blanks()
        return found

    def run(self, name: str, cut: str = "") -> Scan[bool]:
        """Begin a call and read its arguments; return False if no value comes. `cut`: see Scanner.value."""
        if not self._is_value():
            return False
        self.begin(name)
        yield from self.value(self.give, cut)
        self.end_call()
        return True

    def _bare(self) -> Scan[None]:
        if (yield from self.calls()):
            self.settle()
        else:
            self.show()

    def _fenced(self, begin: str) -> Scan[None]:
        """Read the calls in a fence, whose first text is held; without any, all of it is text."""
        end = FENCES[begin]
        if self._in_code and begin == end:
            self._in_code = False
            self.show()
            return
        while begin == end and len(self.held) < _FENCE_LINE and (self.char.isalnum() or self.char in ("_", "-", "+")):
            yield from self.take()  # the language
        yield from self.blanks()
        if not (yield from self.calls()):
            self._in_code = begin == end
            self.show()
        elif (yield from self.literal(end)):
            self.held.clear()
        else:
            self.settle()

    def _listed(self) -> Scan[bool]:
        """Read a JSON list of calls."""
        found = False
        if self.char == "[" and self.held != ["["]:
            yield from self.take()
        yield from self.blanks()
        while self.char == "{" and (yield from self._call()):
            found = True
            yield from self._close()
            yield from self.blanks()
            if self.char == ",":
                yield from self.take()
                yield from self.blanks()
            elif self.char == "]":
                yield from self.take()
                self.held.clear()
                yield from self.blanks()
                break
        return found

    def _call(self, cut: str = "") -> Scan[bool]:
        """Read a call's object up to the end of its arguments; return False if it is no call, with all of it held."""
        name: str | None = None
        arguments: list[str] | None = None
        keys: list[str] = []
        self._open = 0
        while (key := (yield from self._member(keys))) is not None:
            keys.append(key)
            if key == "function" and self.char == "{":
                continue
            if key in _NAMES and name is None:
                name = yield from self._one_of(self.names)
                if name is None or not self.is_opening():
                    return False
            elif key in ARGUMENTS and arguments is None:
                if name is not None:
                    return (yield from self.run(name, cut))
                if not self._is_value():
                    return False
                arguments = []
                yield from self.value(arguments.append, cut)
            else:
                yield from self.value(_nowhere, cut)
            yield from self.blanks()
            if arguments is None and self.char == "}" and (len(keys) == 1 or "function" in keys):
                arguments = ["{}"]  # a name alone calls a function without arguments
            if name is not None and arguments is not None:
                self.begin(name)
                self.give("".join(arguments))
                self.end_call()
                return True
        return False

    def _member(self, before: Sequence[str]) -> Scan[str | None]:
        """Take what precedes a member of a call, and its name up to its value; return None if there is no member."""
        if not before or before[-1] == "function":
            if self.char != "{" and not before:
                return None
            if self.char == "{":
                yield from self.take()
                self._open += 1
                if not before and self.char == "{":  # some templates show doubled braces
                    yield from self.take()
                    self._open += 1
                return (yield from self._key(_KEYS))
        if self.char != ",":
            return None
        yield from self.take()
        return (yield from self._key(_KEYS))

    def _close(self, cut: str = "") -> Scan[None]:
        """Read the rest of a call's object after its arguments."""
        while self._open:
            yield from self.blanks()
            while self.char == ",":
                yield from self.take()
                if (yield from self._key(())) is None:
                    break
                yield from self.value(_nowhere, cut)
                yield from self.blanks()
            if self.char != "}":
                self.settle()
                return
            yield from self.take()
            self._open -= 1
            self.held.clear()

    def _key(self, known: Collection[str]) -> Scan[str | None]:
        """Take a member's name up to its value; return None if there is none, or none of `known`, if that has any."""
        yield from self.blanks()
        key = (yield from self._one_of(known)) if known else (yield from self.string())
        yield from self.blanks()
        if key is None or self.char != ":":
            return None
        yield from self.take()
        yield from self.blanks()
        return key

    def _one_of(self, texts: Collection[str]) -> Scan[str | None]:
        """Take a JSON string; return its text, or None as soon as it cannot be one of `texts`."""
        raw, most = "", 6 * max(map(len, texts), default=0) + 2
        while self.char and (raw or self.char == '"'):
            char = yield from self.take()
            if char == '"' and raw and not raw.endswith("\\"):
                text = text_of(raw)
                return text if text in texts else None
            raw += char
            if len(raw) > most or ("\\" not in raw and not any(text.startswith(raw[1:]) for text in texts)):
                return None
        return None

    def _is_value(self) -> bool:
        return self.char in ("{", "[", '"', "-") or self.char.isalnum()
