"""Grammar of required calls that ends an answer which begins to repeat itself.

A small model that must call, and has called all that it wants, may write the same call until its length ends.
"""

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING

from run_gpt.models.tools import ToolParser

if TYPE_CHECKING:
    import torch

    from run_gpt.models.grammar import CompiledGrammar, GrammarMatcher


class Unrepeated:
    """Grammar (as the engine defines it) of calls: after a call that is equal to an earlier one, the answer ends."""

    def __init__(
        self, grammar: "CompiledGrammar", parser: Callable[[], ToolParser], token_bytes: Callable[[int], bytes]
    ):
        """`parser` makes the parser of one answer, which drops such calls; `token_bytes` gives a token's bytes."""
        self._grammar, self._parser, self._token_bytes = grammar, parser, token_bytes

    def matcher(self) -> "UnrepeatedMatcher":
        """See Grammar."""
        return UnrepeatedMatcher(self._grammar.matcher(), self._parser(), self._token_bytes)


class UnrepeatedMatcher:
    """Matcher (as the engine defines it): state of one sequence, and its calls so far."""

    def __init__(self, matcher: "GrammarMatcher", parser: ToolParser, token_bytes: Callable[[int], bytes]):
        self._matcher, self._parser, self._token_bytes = matcher, parser, token_bytes
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def allows(self, token_id: int) -> bool:
        """See Matcher."""
        if self._parser.repeated:
            return token_id in self._matcher.end_ids
        return self._matcher.allows(token_id)

    def mask(self) -> "torch.Tensor":
        """See Matcher."""
        mask = self._matcher.mask()
        if self._parser.repeated:
            mask[:] = False
            mask[self._matcher.end_ids] = True
        return mask

    def advance(self, token_id: int) -> None:
        """See Matcher."""
        self._matcher.advance(token_id)
        self._parser.push(self._text.decode(self._token_bytes(token_id)))

    def forced(self) -> list[int]:
        """See Matcher."""
        return [] if self._parser.repeated else self._matcher.forced()
