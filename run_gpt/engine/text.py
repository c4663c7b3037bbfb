"""Incremental text of token ids: never half a character, never a part of a stop sequence. No torch here."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
Unstopped = Callable[[str], int | None]
"""Function that gets an answer's text piece by piece, and returns the number of characters at the piece's beginning in
which stop sequences do not count. None: that is known with a later piece, for this one, too."""

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

    def __init__(self, stops: Sequence[str], unstopped: Unstopped | None = None):
        self.texts = stops
        self.read = 0
        """Number of characters of the text so far, if there are stop sequences."""
        self.latest = ""
        """Latest part of the text that was not empty, if there are stop sequences."""
        self.cut: str | None = None
        """Text from the stop sequence on, once one was found."""
        self.found: str | None = None
        """Stop sequence that was found."""
        self._unstopped = unstopped
        self._unknown = ""
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown, and True when a stop sequence was found. No text after it is shown."""
        if not self.texts:
            return text, False
        self.read, self.latest = self.read + len(text), text or self.latest
        if self._unstopped is not None:
            return self._push_after(self._unstopped(text), text)
        return self._search(text)

    def _push_after(self, unstopped: int | None, text: str) -> tuple[str, bool]:
        """Push a text; in its first `unstopped` characters no stop sequence counts."""
        self._unknown += text
        if unstopped is None:
            return "", False
        text, self._unknown, left = self._unknown, "", len(text) - unstopped
        if not unstopped:
            return self._search(text)
        before, self._held = self._held + text[: len(text) - left], ""
        shown, stopped = self._search(text[len(text) - left :])
        return before + shown, stopped

    def _search(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        found = [(at, stop) for stop in self.texts if (at := text.find(stop)) >= 0]
        if found:
            at, self.found = min(found)
            self._held, self.cut = "", text[at:]
            return text[:at], True
        hold = max((self._overlap(text, stop) for stop in self.texts), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """Return the text that was held back: it was not a stop sequence."""
        held, self._held, self._unknown = self._held + self._unknown, "", ""
        return held

    @property
    def shown(self) -> int:
        """Number of characters of the text that may be shown, if there are stop sequences."""
        return self.read - len(self._held + self._unknown if self.cut is None else self.cut)

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0


class TextStream:
    """Text of one sequence: detokenised, and cut at the first stop sequence."""

    def __init__(
        self,
        decode: Decode,
        prompt_ids: Sequence[int],
        stops: Sequence[str] = (),
        *,
        whole: bool = False,
        unstopped: Unstopped | None = None,
    ):
        """`whole`: all text comes with `finish`, decoded once. With stop sequences each token is still checked."""
        self._detokenizer = Detokenizer(decode, prompt_ids)
        self.stops = StopTexts(stops, unstopped)
        self._late = whole and not stops

    def push(self, token_id: int) -> tuple[str, bool]:
        """Return the new text, and True when a stop sequence was completed."""
        if self._late:
            self._detokenizer.add(token_id)
            return "", False
        return self.stops.push(self._detokenizer.push(token_id))

    def finish(self) -> tuple[str, bool]:
        """Return the last text, and True when it completed a stop sequence; for a sequence that ends otherwise."""
        text, stopped = self.stops.push(self._detokenizer.flush())
        return (text, True) if stopped else (text + self.stops.flush(), False)
