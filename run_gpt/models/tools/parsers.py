"""Parsers for answers with calls, one for each format."""

from run_gpt.models.tools.parser import ToolParser
from run_gpt.models.tools.scanner import Scan


class JsonParser(ToolParser):
    """Parser of answers that are one call's object, several objects, or a list of them; any other answer is text."""

    def answer(self) -> Scan[None]:
        yield from self.blanks()
        yield from (self.listed() if self.char == "[" else self.objects())


class LlamaParser(ToolParser):
    """Parser of answers that are one or more calls' objects, with or without Llama's token for code before them."""

    def answer(self) -> Scan[None]:
        yield from self.blanks()
        yield from self.literal("<|python_tag|>")
        yield from self.blanks()
        yield from self.objects()


class HermesParser(ToolParser):
    """Parser of answers with calls' objects between `<tool_call>` and `</tool_call>`, anywhere in the answer."""

    begin, end = "<tool_call>", "</tool_call>"

    def answer(self) -> Scan[None]:
        cut = self.end[0]  # does not occur in JSON outside of strings
        found = yield from self.find(self.begin)
        while found:
            yield from self.blanks()
            if self.char == "{" and (yield from self.call(cut)):
                yield from self.close(cut)
                yield from self.blanks()
                marker = yield from self.literal(self.begin, self.end)
                if marker == self.begin:  # models may omit the end marker
                    continue
                if marker is None:
                    self.settle()
            else:
                self.show()
            self.held.clear()
            found = yield from self.find(self.begin)


class MistralParser(ToolParser):
    """Parser of answers with a list of calls, or a function's name, `[ARGS]` and arguments, after `[TOOL_CALLS]`."""

    def answer(self) -> Scan[None]:
        while (yield from self.find("[TOOL_CALLS]")):
            yield from self.blanks()
            yield from (self.listed() if self.char == "[" else self._named())
            self.show()

    def _named(self) -> Scan[None]:
        name = ""
        while self.char and any(known.startswith(name + self.char) for known in self.names):
            name += yield from self.take()
        if name not in self.names:
            return
        marker = yield from self.literal("[CALL_ID]", "[ARGS]")
        if marker == "[CALL_ID]":
            while self.char.isalnum():
                yield from self.take()
            yield from self.literal("[ARGS]")
        yield from self.blanks()
        if self.char == "{":
            yield from self.run(name)
