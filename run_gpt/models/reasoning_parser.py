"""Parsers that split an answer, piece by piece as it arrives, into what the model thinks and what it says.

The joined parts do not depend on how the answer is cut. White space around the thinking, and line breaks before the
answer after it, belong to neither.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Texts around a model's thinking, and around the answer after it."""

    begin: str
    end: str
    first: str = ""
    """Text that some models write between the thinking and the answer."""
    last: str = ""
    """Text after the answer."""
    blanks: str = "\r\n"
    """Characters of white space before the answer that are no part of it."""


class ReasoningParser:
    """Parser of one answer: `push` its text as it comes, then `finish`. Each returns new thinking and new content."""

    began = False
    """True once the answer has some thinking."""
    thinking = False
    """True when more text is thinking."""
    answering = False
    """True when more text is content, or a call."""
    crossed = False
    """True when the last text that was pushed completed a mark."""

    def __init__(self) -> None:
        self._held = ""
        self._thought: list[str] = []
        self._said: list[str] = []

    @property
    def within(self) -> int:
        """Number of characters held that may be the beginning of the mark that ends the thinking."""
        return 0

    def push(self, text: str) -> tuple[str, str]:
        """Return the thinking and the content that this text completes; a possible beginning of a mark comes later."""
        self._held += text
        self.crossed = False
        while self._held and self._step():
            pass
        return self._new()

    def finish(self) -> tuple[str, str]:
        """Return the parts that were held back. Nothing comes after them."""
        self._end()
        self._held = ""
        return self._new()

    @abstractmethod
    def _step(self) -> bool:
        """Read on in the held text; return False if more text is needed, or none is left to read."""

    @abstractmethod
    def _end(self) -> None:
        """Take the held text as the end of the answer."""

    def _new(self) -> tuple[str, str]:
        new = "".join(self._thought), "".join(self._said)
        self._thought.clear()
        self._said.clear()
        return new


class MarkParser(ReasoningParser):
    """Parser of answers that begin with thinking between two marks, or have none."""

    def __init__(self, marks: Sequence[Marks], opened: Marks | None = None, *, resumed: bool = False):
        """`opened`: marks whose first one the prompt ends with; `resumed`: some thinking follows it there."""
        super().__init__()
        self.mark = opened or marks[0]
        """Marks of this answer's thinking."""
        self._marks = marks
        self._opened = opened
        self._state: Literal["before", "thinking", "after", "answer"] = "before"
        self._some = False
        self._first = ""
        if opened is not None:
            self.began = self.thinking = True
            if resumed:
                self._state = "thinking"

    @property
    def is_opened(self) -> bool:
        """True when the prompt has the beginning of the thinking."""
        return self._opened is not None

    @property
    def within(self) -> int:
        """See ReasoningParser."""
        return overlap(self._held, self.mark.end) if self._state == "thinking" else 0

    def _step(self) -> bool:
        return bool(getattr(self, f"_read_{self._state}")())

    def _read_before(self) -> bool:
        text = self._held.lstrip()
        possible = [mark for mark in self._marks if self._opened in (None, mark)]
        for mark in possible:
            if text.startswith(mark.begin):  # some models repeat the mark of the prompt
                self._held, self.mark = text[len(mark.begin) :], mark
                self._go_on("thinking")
                self.crossed = True
                return True
        if any(mark.begin.startswith(text) for mark in possible):
            return False
        self._go_on("answer" if self._opened is None else "thinking")
        return True

    def _read_thinking(self) -> bool:
        held, end = self._held, self.mark.end
        at = held.find(end)
        ready = held[: len(held) - overlap(held, end) if at < 0 else at]
        text = ready.rstrip()
        self._think(text)
        if at < 0:
            self._held = ready[len(text) :] + held[len(ready) :]
            return False
        self._held = held[at + len(end) :]
        self._go_on("after")
        self._first = self.mark.first
        self.crossed = True
        return True

    def _read_after(self) -> bool:
        text = self._held = self._held.lstrip(self.mark.blanks)
        first = self._first
        if first and text.lstrip().startswith(first):
            self._held, self._first = text.lstrip()[len(first) :], ""
            self.crossed = True
            return True
        if not text or (first and first.startswith(text.lstrip())):
            return False
        self._go_on("answer")
        return True

    def _read_answer(self) -> bool:
        held, last = self._held, self.mark.last if self.began else ""
        at = held.find(last) if last else -1
        if at >= 0:
            self._said.append(held[:at])
            self._held = held[at + len(last) :]
            self.crossed = True
            return True
        ready = len(held) - (overlap(held, last) if last else 0)
        self._said.append(held[:ready])
        self._held = held[ready:]
        return False

    def _end(self) -> None:
        if self.thinking:
            self._think(self._held.rstrip())
        elif self._state != "after" or self._held.strip():
            self._said.append(self._held)

    def _think(self, text: str) -> None:
        text = text if self._some else text.lstrip()
        self._some = self._some or bool(text)
        self._thought.append(text)

    def _go_on(self, state: Literal["thinking", "after", "answer"]) -> None:
        self._state = state
        self.thinking = state == "thinking"
        self.answering = state == "answer"
        self.began = self.began or self.thinking


CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w*)")


class ChannelParser(ReasoningParser):
    """Parser of OpenAI's harmony: messages on channels. `analysis` is thinking; calls stay as they are written.

    A message to a recipient (`to=`) is a call: its text with all marks is content, for the parser of calls.
    """

    def __init__(self, begun: str = ""):
        """`begun`: the prompt's part of the answer after `<|start|>assistant`."""
        super().__init__()
        self._state: Literal["before", "header", "body", "answer"] = "before"
        self._kind: Literal["thought", "text", "call"] = "text"
        self._seen = {"thought": False, "text": False, "call": False}
        self._separate = False
        self.begun = begun
        if begun:
            self.push(begun)

    def _step(self) -> bool:
        return bool(getattr(self, f"_read_{self._state}")())

    def _read_before(self) -> bool:
        text = self._held.lstrip()
        beginnings = (CHANNEL, START, MESSAGE, "to=")
        if any(text.startswith(mark) for mark in beginnings):
            self._state = "header"
        elif any(mark.startswith(text) for mark in beginnings):
            return False
        else:
            self._state, self.answering = "answer", True
        return True

    def _read_answer(self) -> bool:
        self._said.append(self._held)
        self._held = ""
        return False

    def _read_header(self) -> bool:
        header, found, rest = self._held.partition(MESSAGE)
        if not found:
            return False
        self._kind = "call" if "to=" in header else "thought" if is_thinking(header) else "text"
        if self._kind == "call":
            self._said.append(header + MESSAGE)
        self._held, self._state = rest, "body"
        self._separate = self._seen[self._kind]
        self.thinking, self.answering = self._kind == "thought", self._kind != "thought"
        self.began = self.began or self.thinking
        self.crossed = self._kind != "call"
        return True

    def _read_body(self) -> bool:
        found = [(at, mark) for mark in (*ENDS, START) if (at := self._held.find(mark)) >= 0]
        if not found:
            ready = len(self._held) - max(overlap(self._held, mark) for mark in (*ENDS, START))
            self._give(self._held[:ready])
            self._held = self._held[ready:]
            return False
        at, mark = min(found)
        self._give(self._held[:at])
        if mark != START:
            at += len(mark)
            if self._kind == "call":
                self._said.append(mark)
        self._held, self._state = self._held[at:], "header"
        self.thinking = self.answering = False
        return True

    def _end(self) -> None:
        if self._state == "body":
            self._give(self._held)
        elif not self._held.lstrip().startswith("<|"):
            self._said.append(self._held)

    def _give(self, text: str) -> None:
        if not text:
            return
        if self._separate and self._kind != "call":
            text = f"\n{text}"
        self._separate, self._seen[self._kind] = False, True
        (self._thought if self._kind == "thought" else self._said).append(text)


def is_thinking(header: str) -> bool:
    """Return True for the beginning of a message whose channel is that of thinking, and that is no call."""
    channel = _NAME.search(header)
    return "to=" not in header and channel is not None and channel[1] == "analysis"


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `mark`, but not all of it."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
