"""Drafts for speculative decoding by prompt lookup: what followed the last time the same few tokens stood there.

Apoorv Saxena, "Prompt lookup decoding" (2023): answers often repeat parts of their prompt or of themselves (names,
quotes, code, tables), and then the continuation is known before the model has run. No torch here.
"""

from collections.abc import Sequence

NGRAMS = (3, 2)
"""Lengths of the beginnings that are looked up, the surest first. One token alone says too little."""
FIRST_LENGTH = 4
LONGEST = 16
PAUSE = 16
"""Tokens without a draft after even the shortest one was wrong: a text that does not repeat costs little."""


class PromptLookup:
    """The drafts of one row: an index over its prompt and answer, which grows with them, and how long drafts may be."""

    def __init__(self) -> None:
        # Where an n-gram stood last, as the place of the token after it. The n-gram at the very end is not in it yet:
        # nothing has followed it.
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._length = FIRST_LENGTH
        self._paused_until = 0

    def draft(self, history: Sequence[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow `history`, the row's prompt and answer so far; often none."""
        if most < 1 or len(history) < self._paused_until:
            return ()
        self._index(history)
        for size in NGRAMS:
            if place := self._after.get(tuple(history[-size:])):
                period = len(history) - place  # a draft that comes to the end of the history begins to repeat itself
                return tuple(history[place + i % period] for i in range(min(most, self._length)))
        return ()

    def learn(self, history: Sequence[int], drafted: int, accepted: int) -> None:
        """What became of a draft. All right: longer ones from now on; none: shorter ones, then a pause."""
        if accepted == drafted:
            self._length = min(LONGEST, 2 * self._length)
        elif not accepted:
            self._length //= 2
            if not self._length:
                self._length, self._paused_until = 1, len(history) + PAUSE

    def _index(self, history: Sequence[int]) -> None:
        """Take in the tokens that came since the last draft."""
        for place in range(max(self._indexed, min(NGRAMS)), len(history)):
            for size in NGRAMS:
                if size <= place:
                    self._after[tuple(history[place - size : place])] = place
        self._indexed = len(history)
