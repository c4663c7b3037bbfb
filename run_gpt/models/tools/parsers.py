"""Parsers for answers with calls, one for each format whose arguments are JSON."""

import re

from run_gpt.models.tools.objects import ObjectParser
from run_gpt.models.tools.scanner import Scan

DEEPSEEK = tuple(
    f"<\uff5ctool\u2581{words}\uff5c>"
    for words in ("calls\u2581begin", "call\u2581begin", "sep", "call\u2581end", "calls\u2581end")
)
"""DeepSeek's tokens around calls, in the order of an answer."""
_HEADER = 256
"""Most characters of a message's header that are held back."""


class JsonParser(ObjectParser):
    """Parser of answers with calls that are objects, several objects, or a list of them; the remainder is text."""

    def answer(self) -> Scan[None]:
        yield from self.find()


class LlamaParser(ObjectParser):
    """Parser of answers with calls' objects, with or without Llama's token for code before them."""

    def answer(self) -> Scan[None]:
        while (yield from self.find("<|python_tag|>")):
            yield from self.blanks()
            if (yield from self.calls()):
                self.settle()
            else:
                self.show()


class HermesParser(ObjectParser):
    """Parser of answers with calls' objects between `<tool_call>` and `</tool_call>`, anywhere in the answer."""

    begin_text, end_text = "<tool_call>", "</tool_call>"

    def answer(self) -> Scan[None]:
        cut = self.end_text[0]  # does not occur in JSON outside of strings
        found = yield from self.find(self.begin_text)
        while found:
            yield from self.blanks()
            if (yield from self.calls(cut)):
                marker = yield from self.literal(self.begin_text, self.end_text)
                if marker == self.begin_text:  # models may omit the end marker
                    continue
                if marker is None:
                    self.settle()
                self.held.clear()
            else:
                self.show()
            found = yield from self.find(self.begin_text)


class MistralParser(ObjectParser):
    """Parser of answers with a list of calls, or a function's name, `[ARGS]` and arguments, after `[TOOL_CALLS]`."""

    def answer(self) -> Scan[None]:
        while (yield from self.find("[TOOL_CALLS]")):
            yield from self.blanks()
            if self.char in ("[", "{"):
                called = yield from self.calls()
            else:
                called = yield from self._named()
            if called:
                self.settle()
            self.show()

    def _named(self) -> Scan[bool]:
        name = ""
        while self.char and any(known.startswith(name + self.char) for known in self.names):
            name += yield from self.take()
        if name not in self.names:
            return False
        marker = yield from self.literal("[CALL_ID]", "[ARGS]")
        if marker == "[CALL_ID]":
            while self.char.isalnum():
                yield from self.take()
            yield from self.literal("[ARGS]")
        yield from self.blanks()
        return self.char == "{" and (yield from self.run(name))


class DeepSeekParser(ObjectParser):
    """Parser of answers with calls between DeepSeek's tokens: version 3 has a fence around arguments, 3.1 has none."""

    begin_text, call_text, separator = (
        "<\uff5ctool\u2581calls\u2581begin\uff5c>",
        "<\uff5ctool\u2581call\u2581begin\uff5c>",
        "<\uff5ctool\u2581sep\uff5c>",
    )
    call_end, end_text = "<\uff5ctool\u2581call\u2581end\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"

    def answer(self) -> Scan[None]:
        while found := (yield from self.find(self.begin_text, self.call_text)):
            called = False
            while found and (found != self.begin_text or (yield from self._first())):
                if not (yield from self._read()):
                    break
                called, found = True, (yield from self._next())
            if called:
                self.settle()
            self.show()

    def _first(self) -> Scan[bool]:
        yield from self.blanks()
        return bool((yield from self.literal(self.call_text)))

    def _read(self) -> Scan[bool]:
        """Read a name and arguments."""
        name = ""
        while self.char and not self.char.isspace() and self.char not in "<`":
            name += yield from self.take()
            if name != "function" and not any(known.startswith(name) for known in (*self.names, "function")):
                return False
        if self.char == "<" and not (yield from self.literal(self.separator)):
            return False
        if name == "function" and self.char not in ("{", "\n"):
            name = ""
            while self.char and not self.char.isspace() and self.char not in "{`":
                name += yield from self.take()
        if name not in self.names:
            return False
        yield from self.blanks()
        yield from self.literal("```json")
        yield from self.blanks()
        return self.char == "{" and (yield from self.run(name))

    def _next(self) -> Scan[str | None]:
        """Take the end of a call, and return the beginning of another one, if there is one."""
        yield from self.blanks()
        yield from self.literal("```")
        yield from self.blanks()
        while marker := (yield from self.literal(self.call_end, self.end_text, self.call_text)):
            self.held.clear()
            if marker == self.call_text:
                return marker
            yield from self.blanks()
        return None


class KimiParser(ObjectParser):
    """Parser of answers with calls between Kimi's tokens; a name is `functions.NAME:NUMBER`."""

    section, call_text, separator = (
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
    )
    call_end, section_end = "<|tool_call_end|>", "<|tool_calls_section_end|>"

    def answer(self) -> Scan[None]:
        while found := (yield from self.find(self.section, self.call_text)):
            called = False
            if found == self.section:
                yield from self.blanks()
                found = yield from self.literal(self.call_text)
            while found and (yield from self._read()):
                called, found = True, None
                yield from self.blanks()
                while marker := (yield from self.literal(self.call_end, self.section_end, self.call_text)):
                    self.held.clear()
                    if marker == self.call_text:
                        found = marker
                        break
                    yield from self.blanks()
            if called:
                self.settle()
            self.show()

    def _read(self) -> Scan[bool]:
        yield from self.blanks()
        yield from self.literal("functions.")
        name = ""
        while self.char and self.char not in ":<" and not self.char.isspace():
            name += yield from self.take()
            if not any(known.startswith(name) for known in self.names):
                return False
        while self.char.isdigit() or self.char == ":" or self.char.isspace():
            yield from self.take()
        if name not in self.names or not (yield from self.literal(self.separator)):
            return False
        yield from self.blanks()
        return self.char == "{" and (yield from self.run(name))


class HarmonyParser(ObjectParser):
    """Parser of answers of gpt-oss: a message to `functions.NAME`, on a channel, is a call."""

    marks = ("<|start|>", "<|channel|>")
    body = "<|message|>"

    def answer(self) -> Scan[None]:
        begins = True
        while begins or (yield from self.find(*self.marks)):
            if begins and not (yield from self._at_recipient()):
                begins = False
                continue
            begins = False
            name = yield from self._header()
            if name in self.names and self.char == "{" and (yield from self.run(name)):
                yield from self.blanks()
                if (yield from self.literal("<|call|>", "<|end|>")):
                    self.held.clear()
                self.settle()
            else:
                self.show()

    def _at_recipient(self) -> Scan[bool]:
        """Return True if the answer begins with the recipient, since the prompt has the message's beginning."""
        yield from self.blanks()
        if self.char == "t" and (yield from self.literal("to=functions.")):
            return True
        self.show()
        return False

    def _header(self) -> Scan[str]:
        """Take the rest of a header, and return the name of the function that it calls."""
        while self.char and len(self.held) < _HEADER:
            if self.char == "<" and (yield from self.literal(self.body)):
                break
            if self.char != "<":
                yield from self.take()
        found = re.search(r"to=functions\.([a-zA-Z0-9_.-]+)", "".join(self.held))
        if found is None or not "".join(self.held).endswith(self.body):
            return ""
        yield from self.blanks()
        return found[1]
