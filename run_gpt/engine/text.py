"""From token ids to text as they come: never half a character, never a part of a stop text. No torch here."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# Tokens of the prompt that are decoded together with the answer's first tokens: a tokenizer may treat the beginning
# of a text in a way of its own (drop its space), and an answer is no beginning.
CONTEXT_TOKENS = 6
WINDOW = 8


class Detokenizer:
    """Incremental detokenising over a window of the last tokens, as in text-generation-inference.

    The text of a token depends on its neighbours, so the window is decoded with each new token, and what is longer than
    the text before is new. Once it has WINDOW tokens it begins anew at its last piece of text.
    """

    def __init__(self, decode: Decode, prompt_ids: Sequence[int]):
        self._decode = decode
        self._ids = list(prompt_ids[-CONTEXT_TOKENS:])
        self._done = len(self._ids)
        """Tokens whose text was given, or needs not to be."""
        self._text: str | None = None
        """Their text, once it was decoded."""

    def add(self, token_id: int) -> None:
        """Take a token whose text is not needed yet."""
        self._ids.append(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty in the middle of a character."""
        self._ids.append(token_id)
        return self._complete(final=False)

    def flush(self) -> str:
        """The text that is left: a character that never became whole."""
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
    """Finds the first stop text in a stream, holding back what might be the beginning of one."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop text was found; nothing after it is ever shown)."""
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
        """What was held back, for it was no stop text after all."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that is a beginning of `stop`."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0


class TextStream:
    """The text of one sequence: detokenised, and cut at the first stop text."""

    def __init__(self, decode: Decode, prompt_ids: Sequence[int], stops: Sequence[str] = (), *, whole: bool = False):
        """`whole`: all text comes with `finish`, by one decoding; but stop texts must be looked for at every token."""
        self._detokenizer = Detokenizer(decode, prompt_ids)
        self._stops = StopTexts(stops)
        self._late = whole and not stops

    def push(self, token_id: int) -> tuple[str, bool]:
        """(new text, whether a stop text was completed)."""
        if self._late:
            self._detokenizer.add(token_id)
            return "", False
        return self._stops.push(self._detokenizer.push(token_id))

    def finish(self) -> tuple[str, bool]:
        """(the last text, whether it completed a stop text); for a sequence that ends otherwise."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        return (text, True) if stopped else (text + self._stops.flush(), False)
