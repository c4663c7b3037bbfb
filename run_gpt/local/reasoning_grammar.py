"""Grammar of an answer with thinking: any text up to its end, which a budget may force, then the answer's own form."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from run_gpt.engine.grammar import Grammar, Matcher
from run_gpt.models.reasoning import MarkTokens, ReasoningFormat
from run_gpt.models.reasoning_parser import MarkParser, ReasoningParser

if TYPE_CHECKING:
    import torch

MOST_BLANKS = 2
"""Number of line breaks that may stand between the thinking and an answer in a form."""


@dataclass(frozen=True, kw_only=True)
class ThinkingGrammar:
    """Grammar (as the engine defines it) of an answer that may begin with thinking."""

    format: ReasoningFormat
    tokens: MarkTokens
    parser: Callable[[], ReasoningParser]
    """Maker of a parser for one answer."""
    size: int
    """Number of token ids that a mask has."""
    end_ids: Sequence[int]
    """Ids that end an answer."""
    inner: Grammar | None = None
    """Form of what follows the thinking; None: any text."""
    budget: int | None = None
    """Most tokens of thinking, then its end is forced; None: any number."""
    blank_ids: frozenset[int] = frozenset()
    """Tokens that are line breaks, which may stand between the thinking and a form."""
    crossing_ids: frozenset[int] = frozenset()
    """Tokens that have text after the last character of the mark that ends the thinking."""
    calls: bool = False
    """True when the answer may have calls."""

    def matcher(self) -> "ThinkingMatcher":
        """See Grammar."""
        return ThinkingMatcher(self)


class Prefixed:
    """Grammar (as the engine defines it) of fixed tokens, then of another grammar."""

    def __init__(self, ids: Sequence[int], grammar: Grammar, size: int):
        """`size`: number of token ids that a mask has."""
        self._ids, self._grammar, self._size = ids, grammar, size

    def matcher(self) -> "PrefixedMatcher":
        """See Grammar."""
        return PrefixedMatcher(self._ids, self._grammar.matcher(), self._size)


class PrefixedMatcher:
    """Matcher (as the engine defines it) of fixed tokens, then of another one's."""

    def __init__(self, ids: Sequence[int], then: Matcher, size: int):
        """`size`: see Prefixed."""
        self.left = list(ids)
        """Fixed tokens that must still come."""
        self._then, self._size = then, size

    def allows(self, token_id: int) -> bool:
        """See Matcher."""
        return token_id == self.left[0] if self.left else self._then.allows(token_id)

    def mask(self) -> "torch.Tensor":
        """See Matcher."""
        return _mask(self._size, (self.left[0],)) if self.left else self._then.mask()

    def advance(self, token_id: int) -> None:
        """See Matcher."""
        if self.left:
            self.left.pop(0)
        else:
            self._then.advance(token_id)

    def forced(self) -> Sequence[int]:
        """See Matcher."""
        return tuple(self.left) or self._then.forced()


class ThinkingMatcher:
    """Matcher (as the engine defines it): state of one sequence before, in or after its thinking."""

    def __init__(self, grammar: ThinkingGrammar):
        self._grammar = grammar
        self._parser = grammar.parser()
        self._state: Literal["before", "thinking", "after"] = "before"
        self._begin = list(grammar.tokens.ids(grammar.format.marks[0].begin))
        """Tokens of the mark that may still begin the thinking."""
        self._inner = self._new_inner()
        """State in the form; None once the answer cannot be without thinking, or if it has no form."""
        self._forced: list[int] = []
        self._thoughts = 0
        self._blanks = 0
        if self._parser.thinking:
            self._think()

    def allows(self, token_id: int) -> bool:
        """See Matcher."""
        if self._forced:
            return token_id == self._forced[0]
        if self._grammar.inner is None:
            return True
        if self._state == "thinking":
            return token_id not in self._forbidden()
        return token_id in self._beside() or (self._inner is not None and self._inner.allows(token_id))

    def mask(self) -> "torch.Tensor":
        """See Matcher."""
        grammar = self._grammar
        if self._forced:
            return _mask(grammar.size, allowed=(self._forced[0],))
        if grammar.inner is None or self._state == "thinking":
            allowed = ~_mask(grammar.size)
            if grammar.inner is not None:
                allowed[list(self._forbidden())] = False
            return allowed
        allowed = _mask(grammar.size) if self._inner is None else self._inner.mask().clone()
        allowed[list(self._beside())] = True
        return allowed

    def advance(self, token_id: int) -> None:
        """See Matcher."""
        if self._state == "after" and self._grammar.inner is not None and not self._forced:
            self._follow(token_id)
            return
        self._parser.push(self._grammar.tokens.text(token_id))
        if self._forced:
            self._forced.pop(0)
            self._state = "after"
        elif self._state == "thinking":
            self._go_on()
        else:
            self._begin_with(token_id)

    def forced(self) -> Sequence[int]:
        """See Matcher."""
        if self._forced or self._grammar.inner is None or self._state == "thinking":
            return tuple(self._forced)
        return self._inner.forced() if self._inner is not None and not self._beside() else ()

    def _begin_with(self, token_id: int) -> None:
        """Take a token that may begin the thinking."""
        if self._parser.thinking:
            self._think()
            return
        if self._grammar.inner is None:
            return
        begins = self._begin[:1] == [token_id]
        if self._inner is not None and self._inner.allows(token_id):
            self._inner.advance(token_id)
        elif begins:
            self._inner = None
        self._begin = self._begin[1:] if begins else []
        self._state = "before" if begins else "after"

    def _think(self) -> None:
        """Begin the thinking."""
        self._state, self._inner, self._blanks = "thinking", self._new_inner(), MOST_BLANKS
        self._check_budget()

    def _go_on(self) -> None:
        """Count a token of the thinking, or end it."""
        grammar = self._grammar
        if not self._parser.thinking:
            self._state = "after"
            self._forced = list(grammar.tokens.ids(grammar.format.gap)) if grammar.inner is not None else []
            return
        self._thoughts += 1
        self._check_budget()

    def _check_budget(self) -> None:
        """Force the end of the thinking if its budget is spent, and what must come before an answer that is no call."""
        grammar, form = self._grammar, self._grammar.format
        if grammar.budget is None or self._thoughts < grammar.budget:
            return
        mark = self._parser.mark if isinstance(self._parser, MarkParser) else form.marks[0]
        answer = form.answer if grammar.inner is None and not grammar.calls else ""
        texts = (mark.end[self._parser.within :], form.gap, answer)
        self._forced = [token_id for text in texts for token_id in grammar.tokens.ids(text)]

    def _follow(self, token_id: int) -> None:
        """Take a token after the thinking, of the form or a line break before it."""
        assert self._inner is not None
        if self._blanks and not self._inner.allows(token_id):
            self._blanks -= 1
            return
        self._blanks = 0
        self._inner.advance(token_id)

    def _beside(self) -> Collection[int]:
        """Return the tokens that are allowed beside those of the form."""
        if self._state == "before":
            return self._begin[:1]
        return self._grammar.blank_ids if self._blanks else ()

    def _forbidden(self) -> Collection[int]:
        """Return the tokens that are not allowed in the thinking before a form.

        Of a mark of several tokens the last one must not have the beginning of the answer.
        """
        grammar = self._grammar
        return {*grammar.end_ids, *grammar.crossing_ids} if self._parser.within else grammar.end_ids

    def _new_inner(self) -> Matcher | None:
        return None if self._grammar.inner is None else self._grammar.inner.matcher()


def _mask(size: int, allowed: Sequence[int] = ()) -> "torch.Tensor":
    """Return a mask that allows these tokens only: [size]."""
    import torch  # an executor without a model does not need it

    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(allowed)] = True
    return mask
