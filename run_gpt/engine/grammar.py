"""Interface between the engine and a grammar library: the tokens that may come next in a sequence. No torch here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from run_gpt.engine.draft import PAUSE, PromptLookup
from run_gpt.errors import RequestError

if TYPE_CHECKING:
    import torch


class Matcher(Protocol):
    """Position of one sequence in its grammar.

    Its methods raise a RequestError with the reason if the grammar cannot go on: the token is not allowed, or needs
    more work than the library's limits permit. The error ends this sequence alone.
    """

    def allows(self, token_id: int) -> bool:
        """Return True when this token may come next; much cheaper than `mask`."""
        ...

    def mask(self) -> "torch.Tensor":
        """Return a mask of the tokens that may come next, on the CPU: bool, [vocabulary of the tokenizer].

        At least one is True. The ids that end a sequence are allowed only when the text so far is complete; if the
        text can only end, no others are. A token id of the model beyond the end of the mask is not allowed.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Go on by this token, which must not be an id that ends a sequence."""
        ...

    def forced(self) -> Sequence[int]:
        """Return the tokens of the text that must come next, in its most frequent tokenisation; empty if there is a
        choice. They are a guess: the model may tokenise the text differently.
        """
        ...


class Grammar(Protocol):
    """Compiled grammar of an answer, for any number of sequences."""

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer. Callable from any thread; takes far less than a step."""
        ...


class GrammarState:
    """Matcher of one sequence. It is advanced only by tokens of the answer, so it is never ahead of it.

    So there is nothing to undo after a failed step, a rejected draft or a change of the runner.
    """

    def __init__(self, grammar: Grammar):
        self._grammar = grammar
        self._matcher: Matcher | None = None
        self._followed = 0

    def after(self, answer: Sequence[int]) -> Matcher:
        """Return the matcher after these tokens, which begin with those of the last call. Raises Matcher's errors."""
        if self._matcher is None:  # created late: a waiting sequence needs none
            self._matcher = self._grammar.matcher()
        for token_id in answer[self._followed :]:
            self._matcher.advance(token_id)
            self._followed += 1
        return self._matcher

    def forced(self, answer: Sequence[int]) -> Sequence[int]:
        """Return the tokens that must come after these."""
        try:
            return self.after(answer).forced()
        except RequestError:  # the sampler gets the same error, and ends the sequence
            return ()


class GrammarDrafts(PromptLookup):
    """Drafts of a sequence with a grammar: the forced text (mostly names of properties), else prompt lookup.

    Drafts are checked like all others, so they may be wrong. Tokenising a long forced text may take longer than a step.
    So it is done once, and again only PAUSE tokens after the model has tokenised the text differently.
    """

    def __init__(self, state: GrammarState, prompt_tokens: int):
        super().__init__()
        self._state = state
        self._prompt_tokens = prompt_tokens
        self._forced: Sequence[int] = ()
        self._from = 0
        """Length of the token_ids before the tokens in `_forced`."""
        self._unsure_until = 0

    def draft(self, token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        """See PromptLookup."""
        if most < 1:
            return ()
        if len(token_ids) >= self._from + len(self._forced) and len(token_ids) >= self._unsure_until:
            self._forced = self._state.forced(token_ids[self._prompt_tokens :])
            self._from = len(token_ids)
        begin = len(token_ids) - self._from
        forced = tuple(self._forced[begin : begin + most])
        return forced or super().draft(token_ids, most)

    def learn(self, token_ids: Sequence[int], drafted: int, accepted: int) -> None:
        """See PromptLookup. Forced text says nothing about repetition in a text."""
        if not self._forced:
            super().learn(token_ids, drafted, accepted)
        elif accepted < drafted:
            self._forced, self._unsure_until = (), len(token_ids) + PAUSE
