"""Data types shared by scheduler, runner and sampler: sequences, the runs of a step, and their outcomes.

Types that are created for each sequence in each step are msgspec structs: they take a tenth of the time of a frozen
dataclass.
"""

import random
from array import array
from collections import abc
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from run_gpt.engine.draft import PromptLookup
from run_gpt.engine.grammar import GrammarDrafts, GrammarState, Matcher
from run_gpt.engine.request import Request, SamplingParams, TokenEvent, TokenLogprob
from run_gpt.engine.shown import ShownTokens
from run_gpt.engine.slots import Copy, Slot, token_array
from run_gpt.engine.text import TextStream
from run_gpt.engine.timing import Times, Timing
from run_gpt.errors import RequestError


@dataclass(eq=False)
class Sequence:
    """One sequence of a request, from the queue to its end."""

    request: Request
    index: int
    text: TextStream
    random: random.Random
    adapter: Any = None
    """LoRA adapter (see lora.Lora), if it has one."""
    first: "Sequence | None" = None
    """First sequence of its request, whose prompt it shares; None for the first itself."""
    token_ids: "array[int]" = field(init=False)
    """Token ids of the prompt and the answer so far."""
    grammar: GrammarState | None = field(init=False)
    """State of its grammar, if it has one."""
    drafts: PromptLookup = field(default_factory=PromptLookup)
    place: Slot | None = None
    """Its slot; None while it waits. An ended sequence keeps it, because a step may still be running there."""
    sums: tuple[float, ...] = ()
    """Sums of the hidden states so far, for an embedding."""
    scores: list[TokenLogprob] = field(default_factory=list)
    """Scores so far of the prompt's tokens, from the second token on; see `scores_prompt`."""
    cached: int = 0
    """Number of prompt tokens that were not run because a slot held them."""
    drafted: int = 0
    """Number of tokens that were drafted for it."""
    accepted: int = 0
    """Number of drafted tokens that were accepted."""
    times: Times = field(default_factory=Times)
    shown: ShownTokens | None = field(init=False, default=None)
    """Its tokens with log-probabilities, if it has them."""
    end_ids: frozenset[int] = frozenset()
    """Ids of tokens that end it."""
    ended: bool = False

    def __post_init__(self) -> None:
        self.token_ids = token_array(self.request.prompt_ids)
        self.grammar = None
        if self.request.sampling.logprobs is not None:
            self.shown = ShownTokens(self.text)
        if self.request.grammar is not None:
            self.grammar = GrammarState(self.request.grammar)
            self.drafts = GrammarDrafts(self.grammar, len(self.request.prompt_ids))

    @property
    def timing(self) -> Timing:
        """Timing for its last event, once all times are set."""
        times = self.times
        started = times.last if times.started is None else times.started
        return Timing(times.arrived, started, times.first, times.last, self.drafted, self.accepted)

    @property
    def kept_ids(self) -> tuple[int, ...]:
        """Ids of its answer's tokens, if its request keeps them."""
        return tuple(self.token_ids[len(self.request.prompt_ids) :]) if self.request.keeps_ids else ()

    @property
    def answered(self) -> int:
        """Number of tokens of the answer so far."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def scores_prompt(self) -> bool:
        """True when its prompt's tokens are scored as they run. Only a request's first sequence does so, for all."""
        return self.request.prompt_logprobs is not None and self.first is None and not self.answered

    @property
    def prefilled(self) -> bool:
        """True when all of its tokens but the last have been run."""
        return self.place is not None and self.place.length >= len(self.token_ids) - 1


class ScheduledTokens(Struct, frozen=True):
    """Tokens of one sequence that one step runs: a part of its prompt, or its last token and the drafts after it."""

    sequence: Sequence
    start: int
    """Position of the first token."""
    token_ids: tuple[int, ...]
    num_logits: int
    """Number of trailing tokens whose logits are needed; 0 for a part of a prompt that is not the last one."""
    num_scored: int = 0
    """Number of these logits, the first ones, that score the next prompt token; the others sample new tokens."""

    @property
    def place(self) -> Slot:
        """Slot of the sequence."""
        assert self.sequence.place is not None  # a sequence without a slot is not run
        return self.sequence.place

    @property
    def slot(self) -> int:
        """Number of the sequence's slot."""
        assert self.sequence.place is not None  # only sequences with a slot run
        return self.sequence.place.number

    @property
    def adapter(self) -> Any:
        """LoRA adapter of the sequence (see lora.Lora), if it has one."""
        return self.sequence.adapter

    @property
    def prompt_length(self) -> int:
        """Number of tokens of the sequence's whole prompt."""
        return len(self.sequence.request.prompt_ids)

    @property
    def pooled(self) -> bool:
        """True when its sequence is an embedding: it needs hidden states and no logits."""
        return self.sequence.request.pooling is not None

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)

    @property
    def num_sampled(self) -> int:
        """Number of trailing tokens whose logits sample new tokens: 0, or one more than there are drafted tokens."""
        return self.num_logits - self.num_scored

    @property
    def drafted(self) -> tuple[int, ...]:
        """Drafted tokens after the sequence's last token. The logits of each token check the draft that follows it."""
        return self.token_ids[len(self.token_ids) - self.num_sampled + 1 :] if self.num_sampled else ()


class Position(Struct, frozen=True):
    """Position at which a token is chosen: after a sequence's token_ids and its accepted drafts."""

    sequence: Sequence
    accepted: tuple[int, ...] = ()
    row: int = 0
    """Number of its row in the step's logits."""

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the request."""
        return self.sequence.request.sampling

    @property
    def token_ids(self) -> "array[int]":
        """Token ids of the prompt and the answer before this position."""
        before = self.sequence.token_ids
        return before + token_array(self.accepted) if self.accepted else before

    @property
    def answer(self) -> "array[int]":
        """Token ids of the answer before this position."""
        return self.token_ids[len(self.sequence.request.prompt_ids) :]

    @property
    def matcher(self) -> Matcher | None:
        """Matcher of the sequence's grammar at this position; None without a grammar."""
        return None if self.sequence.grammar is None else self.sequence.grammar.after(self.answer)

    def held_back(self, end_ids: abc.Sequence[int]) -> abc.Sequence[int]:
        """Return the ids that may not come yet, because of `min_new_tokens`. `end_ids`: ids that end any sequence."""
        least = self.params.min_new_tokens
        if not least or self.sequence.answered + len(self.accepted) >= least:
            return ()
        return (*end_ids, *self.params.stop_token_ids)


class StepPlan(Struct, frozen=True):
    """Plan of one step: slots to free, then copies between slots, then tokens to run."""

    released: tuple[int, ...]
    copies: tuple[Copy, ...]
    runs: tuple[ScheduledTokens, ...]


class Sampled(Struct, frozen=True):
    """Token that the sampler chose for a sequence."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass
class Counters:
    """Counters since the start."""

    prompt_tokens: int = 0
    """Number of prompt tokens of all sequences that got a slot, including reused ones."""
    cached_tokens: int = 0
    """Number of prompt tokens that were reused and not run."""
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Number of drafted tokens that were accepted."""
    steps: int = 0


Outcome = TokenEvent | RequestError
Result = abc.Sequence[Sampled] | RequestError
Scores = abc.Sequence[TokenLogprob] | RequestError
"""Scores of the prompt tokens that a run scores, or an error."""
Sums = abc.Sequence[float]
"""Sums of the hidden states over a run's tokens."""
