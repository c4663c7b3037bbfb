"""Drafts for speculative decoding by prompt lookup: the tokens that followed the last occurrence of an n-gram.

Apoorv Saxena, "Prompt lookup decoding" (2023): answers often repeat parts of their prompt or of themselves (names,
quotes, code, tables), and then the continuation is known before the model has run. No torch here.
"""

from collections.abc import Sequence

NGRAMS = (3, 2)
"""Lengths of the n-grams that are looked up, the most reliable first. A single token is not reliable enough."""
FIRST_LENGTH = 4
LONGEST = 16
PAUSE = 16
"""Number of tokens without a draft after the shortest one was wrong, so that a text without repetition costs little."""


class PromptLookup:
    """Drafts of one sequence: a growing index over its prompt and answer, and the current length of drafts."""

    def __init__(self) -> None:
        # Position of the token after the last occurrence of each n-gram. The n-gram at the end of the token_ids is not
        # in it yet, because nothing has followed it.
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._length = FIRST_LENGTH
        self._paused_until = 0

    def draft(self, token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        """Return up to `most` tokens that may follow `token_ids`, the prompt and the answer so far; often none."""
        if most < 1 or len(token_ids) < self._paused_until:
            return ()
        self._index(token_ids)
        for size in NGRAMS:
            if place := self._after.get(tuple(token_ids[-size:])):
                period = len(token_ids) - place  # a draft that reaches the end of the token_ids restarts at `place`
                return tuple(token_ids[place + i % period] for i in range(min(most, self._length)))
        return ()

    def learn(self, token_ids: Sequence[int], drafted: int, accepted: int) -> None:
        """Adapt the length of drafts to a result: longer if all were accepted, shorter, then a pause, if none was."""
        if accepted == drafted:
            self._length = min(LONGEST, 2 * self._length)
        elif not accepted:
            self._length //= 2
            if not self._length:
                self._length, self._paused_until = 1, len(token_ids) + PAUSE

    def _index(self, token_ids: Sequence[int]) -> None:
        """Index the tokens that were added since the last draft."""
        for place in range(max(self._indexed, min(NGRAMS)), len(token_ids)):
            for size in NGRAMS:
                if size <= place:
                    self._after[tuple(token_ids[place - size : place])] = place
        self._indexed = len(token_ids)
