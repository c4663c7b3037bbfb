"""The seam between the engine and a library of grammars: which token may come next in one row. No torch here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Matcher(Protocol):
    """Where one row is in its grammar.

    Its methods raise a RequestError that says why, and that ends this row alone, if the grammar cannot go on: a token
    that it does not allow, or more work for one token than the library's limits let it do.
    """

    def allows(self, token_id: int) -> bool:
        """Whether this token may come next; much cheaper than `mask`."""
        ...

    def mask(self) -> "torch.Tensor":
        """Which tokens may come next, on the CPU: bool, [vocabulary of the tokenizer]; one at least is True.

        The ids that end a sequence are among them when the text so far is complete, and only then; where it can only
        end, there are no others. A token of the model that lies beyond the mask is not allowed.
        """
        ...

    def advance(self, token_id: int) -> None:
        """This token, which ends no sequence, came next."""
        ...


class Grammar(Protocol):
    """What an answer must be. Compiled once, for any number of rows."""

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer; from any thread, in far less than a step."""
        ...


class GrammarState:
    """The matcher of one row, which follows what the row has: derived from its answer, it is never ahead of it.

    So nothing is to be undone when a step fails, when a draft was wrong, or when another runner goes on.
    """

    def __init__(self, grammar: Grammar):
        self._grammar = grammar
        self._matcher: Matcher | None = None
        self._followed = 0

    def after(self, answer: Sequence[int]) -> Matcher:
        """The matcher after these tokens, which begin with those of the last call. Raises what Matcher raises."""
        if self._matcher is None:  # not before: a row that waits needs none
            self._matcher = self._grammar.matcher()
        for token_id in answer[self._followed :]:
            self._matcher.advance(token_id)
            self._followed += 1
        return self._matcher
