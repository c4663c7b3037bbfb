"""Incremental text of token ids: never half a character, never a part of a stop sequence. No torch here."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# Tokens of the prompt that are decoded together with the answer's first tokens. A tokenizer may treat the beginning
# of a text differently (drop its space), and an answer is not the beginning of a text.
CONTEXT_TOKENS = 6
WINDOW = 8


class Detokenizer:
    """Incremental detokeniser over a window of the last tokens, as in text-generation-inference.

    The text of a token depends on its neighbours. So the window is decoded again with each new token, and the part
    beyond the previous text is new. Once the window has WINDOW tokens it starts again at its last piece of text.
    """

    def __init__(self, decode: Decode, prompt_ids: Sequence[int]):
        self._decode = decode
        self._ids = list(prompt_ids[-CONTEXT_TOKENS:])
        self._done = len(self._ids)
        """Number of tokens whose text was returned, or is not needed."""
        self._text: str | None = None
        """Text of these tokens, once it was decoded."""

    def add(self, token_id: int) -> None:
        """Add a token whose text is not needed yet."""
        self._ids.append(token_id)

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; empty in the middle of a character."""
        self._ids.append(token_id)
        return self._complete(final=False)

    def flush(self) -> str:
        """Return the text that is left: an incomplete character."""
        return self._complete(final=True)

    def _complete(self, *, final: bool) -> str:
        before = self._decode(self._ids[: self._done]) if self._text is None else self._text
        text = self._decode(self._ids)
        self._text = before
        if len(text) <= len(before) or (text.endswith(INCOMPLETE) and not final):
            return ""
        last, self._done, self._text = self._done, len(self._ids), text
        if self._done >= WINDOW:
            self._ids = self._ids[last:]
            self._done, self._text = len(self._ids), None
        return text[len(before) :]


class StopTexts:
    """Search for the first stop sequence in a stream. It holds back text that may be the beginning of one."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown, and True when a stop sequence was found. No text after it is shown."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        hold = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """Return the text that was held back: it was not a stop sequence."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0


class TextStream:
    """Text of one sequence: detokenised, and cut at the first stop sequence."""

    def __init__(self, decode: Decode, prompt_ids: Sequence[int], stops: Sequence[str] = (), *, whole: bool = False):
        """`whole`: all text comes with `finish`, decoded once. With stop sequences each token is still checked."""
        self._detokenizer = Detokenizer(decode, prompt_ids)
        self._stops = StopTexts(stops)
        self._late = whole and not stops

    def push(self, token_id: int) -> tuple[str, bool]:
        """Return the new text, and True when a stop sequence was completed."""
        if self._late:
            self._detokenizer.add(token_id)
            return "", False
        return self._stops.push(self._detokenizer.push(token_id))

    def finish(self) -> tuple[str, bool]:
        """Return the last text, and True when it completed a stop sequence; for a sequence that ends otherwise."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        return (text, True) if stopped else (text + self._stops.flush(), False)
