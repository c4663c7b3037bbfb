"""Parsers of calls whose arguments stand one by one between tags, as text. The pieces have them as JSON."""

import json
from collections.abc import Callable

from run_gpt.models.tools.objects import ObjectParser
from run_gpt.models.tools.scanner import Scan
from run_gpt.models.tools.typed import as_json, is_text


class TaggedParser(ObjectParser):
    """Parser of answers with such calls, anywhere in the answer. A call as an object between the tags is one, too."""

    begins: tuple[str, ...] = ("<tool_call>",)
    end_texts: tuple[str, ...] = ("</tool_call>",)
    name_begin = ""
    """Text before a name, in addition to the first tag."""
    name_end = ""
    """Text after a name; empty: any white space or tag."""
    key_begin = ""
    key_end = ""
    value_begin = ""
    value_end = ""
    framed = False
    """True when each value stands in lines of its own."""

    def answer(self) -> Scan[None]:
        found = yield from self.find(*self.begins)
        while found:
            yield from self.blanks()
            if self.char in ("{", "["):
                called = yield from self.calls("<")
            else:
                called = yield from self._tagged(found)
            found = (yield from self._next()) if called else None
            if not found:
                self.show()
                found = yield from self.find(*self.begins)

    def _next(self) -> Scan[str | None]:
        """Take the tags after a call; return the one that begins another call, if it follows at once."""
        yield from self.blanks()
        while tag := (yield from self.literal(*self.end_texts, *self.begins)):
            if tag in self.begins:
                return tag
            yield from self.blanks()
            self.held.clear()
        self.settle()
        return None

    def _tagged(self, found: str) -> Scan[bool]:
        """Read a call after its first tag; return False if it is none, with all of it held."""
        if self.name_begin and found != self.name_begin and not (yield from self.literal(self.name_begin)):
            return False
        name = ""
        while self.char and self.char not in "<>" and not self.char.isspace():
            name += yield from self.take()
            if not any(known.startswith(name) for known in self.names):
                return False
        if name not in self.names or (self.name_end and not (yield from self.literal(self.name_end))):
            return False
        yield from self.blanks()
        tag = yield from self.literal(self.key_begin, *self.end_texts)
        if tag is None:
            return False
        self.begin(name)
        yield from self._arguments(name, tag)
        self.end_call()
        return True

    def _arguments(self, name: str, tag: str | None) -> Scan[None]:
        """Read arguments up to the end of the call; one that the answer's end cuts has no closing brace."""
        self.give("{")
        before = ""
        while tag == self.key_begin:
            key: list[str] = []
            if not (yield from self._up_to(self.key_end, key.append)):
                return
            if self.value_begin:
                yield from self.blanks()
                if not (yield from self.literal(self.value_begin)):
                    return
            argument = "".join(key).strip()
            self.give(f"{before}{json.dumps(argument, ensure_ascii=False)}: ")
            before = ", "
            if not (yield from self._value(name, argument)):
                return
            yield from self.blanks()
            tag = yield from self.literal(self.key_begin, *self.end_texts)
        if tag is not None or self.char:
            self.give("}")

    def _value(self, name: str, argument: str) -> Scan[bool]:
        """Read a value; return False if the answer ends before it does."""
        if self.framed and self.char == "\n":
            yield from self.take()
        if is_text(self.functions[name], argument):
            self.give('"')
            ended = yield from self._up_to(self.value_end, lambda text: self.give(_escaped(text)), framed=self.framed)
            self.give('"' if ended else "")
            return ended
        raw: list[str] = []
        ended = yield from self._up_to(self.value_end, raw.append, framed=self.framed)
        text = "".join(raw)
        self.give(as_json(self.functions[name], argument, text) if ended else text)
        return ended

    def _up_to(self, end: str, give: Callable[[str], None], *, framed: bool = False) -> Scan[bool]:
        """Read a text up to `end`, and if `framed`, a line break before it; return False if it does not come."""
        wanted = f"\n{end}" if framed else end
        held = ""
        while self.char:
            held += yield from self.take()
            if held in (end, wanted):
                self.held.clear()
                return True
            while held and not (end.startswith(held) or wanted.startswith(held)):
                give(held[0])
                held = held[1:]
        return False


class QwenCoderParser(TaggedParser):
    """Parser of answers of Qwen 3 Coder: `<function=NAME>` with a `<parameter=KEY>` for each argument."""

    begins = ("<tool_call>", "<function=")
    end_texts = ("</function>", "</tool_call>")
    name_begin, name_end = "<function=", ">"
    key_begin, key_end, value_end = "<parameter=", ">", "</parameter>"
    framed = True


class GlmParser(TaggedParser):
    """Parser of answers of GLM 4.5: a name, with `<arg_key>` and `<arg_value>` for each argument."""

    key_begin, key_end = "<arg_key>", "</arg_key>"
    value_begin, value_end = "<arg_value>", "</arg_value>"


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
