"""Parsers for answers with calls, one for each format whose arguments are JSON."""

from run_gpt.models.tools.objects import ObjectParser
from run_gpt.models.tools.scanner import Scan


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
