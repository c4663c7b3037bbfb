"""Tokens with log-probabilities, held back until it is known how much of their text an answer shows. No torch here."""

from collections import deque
from dataclasses import dataclass, field

from msgspec.structs import replace

from run_gpt.engine.request import TokenLogprob
from run_gpt.engine.text import TextStream


@dataclass
class _Group:
    """Tokens whose text came together, because they share a character; mostly a single one."""

    begin: int
    """Position at which their text begins."""
    text: str = ""
    """Their text; empty while the character is incomplete."""
    tokens: list[TokenLogprob] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.begin + len(self.text)


class ShownTokens:
    """Tokens of one sequence, whose text goes through `text`.

    A stop sequence hides the tokens from its beginning on, and the end of the token that it begins in.
    """

    def __init__(self, text: TextStream):
        self._stops = text.stops
        self._read = 0
        self._held = deque[_Group]()

    def add(self, token: TokenLogprob, *, over: bool, ends: bool) -> list[TokenLogprob]:
        """Take the next token after its text; return the tokens that need not be held back any more.

        `over`: the sequence is over. `ends`: this token itself ends it, as the end of sequence does.
        """
        if ends:
            token = replace(token, shown=0)
        if not self._stops.texts:
            return [token]
        if not self._held or self._held[-1].text:
            self._held.append(_Group(self._read))
        if not ends:
            self._held[-1].tokens.append(token)
        if self._stops.read > self._read:
            self._held[-1].text, self._read = self._stops.latest, self._stops.read
        released = list[TokenLogprob]()
        while self._held and (over or (self._held[0].text and self._held[0].end <= self._stops.shown)):
            released += self._cut(self._held.popleft())
        return [*released, token] if ends else released

    def _cut(self, group: _Group) -> list[TokenLogprob]:
        shown = self._stops.shown
        if self._stops.cut is None or (group.text and group.end <= shown):
            return group.tokens
        part = len(group.text[: max(0, shown - group.begin)].encode())
        return [replace(token, shown=part) for token in group.tokens]
