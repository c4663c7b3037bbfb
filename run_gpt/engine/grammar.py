"""The seam between the engine and a library of grammars: which token may come next in one row. No torch here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from run_gpt.engine.draft import PAUSE, PromptLookup
from run_gpt.errors import RequestError

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

    def forced(self) -> Sequence[int]:
        """The tokens of the text that must come next, as it is most often cut into tokens; empty where there is a
        choice. They are a guess: the model may cut the text otherwise.
        """
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

    def forced(self, answer: Sequence[int]) -> Sequence[int]:
        """What must come after these tokens."""
        try:
            return self.after(answer).forced()
        except RequestError:  # the sampler meets it as well, and ends the row
            return ()


class GrammarDrafts(PromptLookup):
    """The drafts of a row with a grammar: what it must say next (the names of properties, most often), else as others'.

    A draft is checked like any other, so it need not be the right one. A long forced text is cut into tokens once, and
    again only some tokens after the model has cut it otherwise: that may take longer than a step.
    """

    def __init__(self, state: GrammarState, prompt_tokens: int):
        super().__init__()
        self._state = state
        self._prompt_tokens = prompt_tokens
        self._forced: Sequence[int] = ()
        self._from = 0
        """The length of the history that was followed by `_forced`."""
        self._unsure_until = 0

    def draft(self, history: Sequence[int], most: int) -> tuple[int, ...]:
        """See PromptLookup."""
        if most < 1:
            return ()
        if len(history) >= self._from + len(self._forced) and len(history) >= self._unsure_until:
            self._forced = self._state.forced(history[self._prompt_tokens :])
            self._from = len(history)
        begin = len(history) - self._from
        forced = tuple(self._forced[begin : begin + most])
        return forced or super().draft(history, most)

    def learn(self, history: Sequence[int], drafted: int, accepted: int) -> None:
        """See PromptLookup. What had to come tells nothing of how a text repeats itself."""
        if not self._forced:
            super().learn(history, drafted, accepted)
        elif accepted < drafted:
            self._forced, self._unsure_until = (), len(history) + PAUSE
