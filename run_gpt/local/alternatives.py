"""Combination of grammars: an answer must follow one of several, or several at once, which one grammar cannot state."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch

from run_gpt.engine.grammar import Grammar, Matcher
from run_gpt.errors import InvalidRequest


class Alternatives:
    """Grammar (as the engine defines it) of several ways, each of several grammars.

    An answer must follow one of the ways, that is, all grammars of that way must allow it.
    """

    def __init__(self, ways: Sequence[Sequence[Grammar]]):
        self._ways = ways

    def matcher(self) -> "AlternativesMatcher":
        """See Grammar."""
        return AlternativesMatcher([[grammar.matcher() for grammar in way] for way in self._ways])


class AlternativesMatcher:
    """Matcher (as the engine defines it): state of one sequence in the ways that are still open to it."""

    def __init__(self, ways: list[list[Matcher]]):
        self._ways = ways

    def allows(self, token_id: int) -> bool:
        """See Matcher."""
        return any(_allow(way, token_id) for way in self._ways)

    def mask(self) -> torch.Tensor:
        """See Matcher."""
        masks = [reduce(np.logical_and, [matcher.mask().numpy() for matcher in way]) for way in self._ways]
        allowed = reduce(np.logical_or, masks)
        if not allowed.any():
            raise InvalidRequest(
                "response_format: the answer begins as a call, which it cannot be, and this leaves no other form to it",
                param="response_format",
            )
        return torch.from_numpy(allowed)

    def advance(self, token_id: int) -> None:
        """See Matcher."""
        if len(self._ways) > 1:
            self._ways = [way for way in self._ways if _allow(way, token_id)] or self._ways
        for way in self._ways:
            for matcher in way:
                matcher.advance(token_id)

    def forced(self) -> Sequence[int]:
        """See Matcher. Only the first grammar of the way is asked, since it is the most specific."""
        return self._ways[0][0].forced() if len(self._ways) == 1 else ()


def _allow(way: Sequence[Matcher], token_id: int) -> bool:
    return all(matcher.allows(token_id) for matcher in way)
