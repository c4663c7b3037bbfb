"""Types that scheduler, runner and sampler share: rows, their tokens in a step, and the outcomes of a step.

Objects that each row needs in each step are msgspec structs, which take a tenth of the time of frozen dataclasses.
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from run_gpt.engine.draft import PromptLookup
from run_gpt.engine.grammar import GrammarDrafts, GrammarState
from run_gpt.engine.request import Request, TokenEvent, TokenLogprob
from run_gpt.engine.slots import Copy, Slot, token_array
from run_gpt.engine.text import TextStream
from run_gpt.engine.timing import Times, Timing
from run_gpt.errors import RequestError


@dataclass(eq=False)
class Row:
    """One sequence of a request, from the queue to its end."""

    request: Request
    index: int
    text: TextStream
    random: random.Random
    adapter: Any = None
    """Its LoRA adapter (see lora.Lora), if it has one."""
    first: "Row | None" = None
    """The first sequence of its request, whose prompt it shares; None for the first itself."""
    history: "array[int]" = field(init=False)
    """Prompt and answer so far."""
    grammar: GrammarState | None = field(init=False)
    """Where it is in its grammar, if it has one."""
    drafts: PromptLookup = field(default_factory=PromptLookup)
    place: Slot | None = None
    """Its slot; None while it waits. An ended row keeps it, for a step may still be running there."""
    sums: tuple[float, ...] = ()
    """Of an embedding: the hidden states so far."""
    scores: list[TokenLogprob] = field(default_factory=list)
    """Of its prompt's tokens from the second on, as many as have been scored; see `scores_prompt`."""
    cached: int = 0
    """Tokens of its prompt that it did not run, for a slot held them."""
    drafted: int = 0
    """Tokens that were drafted for it."""
    accepted: int = 0
    """Of these, found right."""
    times: Times = field(default_factory=Times)
    ended: bool = False

    def __post_init__(self) -> None:
        self.history = token_array(self.request.prompt_ids)
        self.grammar = None
        if self.request.grammar is not None:
            self.grammar = GrammarState(self.request.grammar)
            self.drafts = GrammarDrafts(self.grammar, len(self.request.prompt_ids))

    @property
    def timing(self) -> Timing:
        """What its last event says of its times, once they are noted."""
        times = self.times
        started = times.last if times.started is None else times.started
        return Timing(times.arrived, started, times.first, times.last, self.drafted, self.accepted)

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.history) - len(self.request.prompt_ids)

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt's tokens get scores when they are run: the first sequence makes them, once for all."""
        return self.request.prompt_logprobs is not None and self.first is None and not self.answered

    @property
    def prefilled(self) -> bool:
        """Whether all of its tokens but the last have been run."""
        return self.place is not None and self.place.length >= len(self.history) - 1


class Run(Struct, frozen=True):
    """Tokens of one row that one step runs: a part of its prompt, or its last token and what was drafted after it."""

    row: Row
    start: int
    """Position of the first of them."""
    token_ids: tuple[int, ...]
    wanted: int
    """Of how many of the last tokens the logits are wanted: 0 for a part that is not the prompt's last."""
    scored: int = 0
    """How many of these, the first ones, score the token of the prompt that follows; the others choose new tokens."""

    @property
    def slot(self) -> int:
        """The number of the row's slot."""
        assert self.row.place is not None  # only rows with a slot run
        return self.row.place.number

    @property
    def adapter(self) -> Any:
        """The LoRA adapter of the row (see lora.Lora), if it has one."""
        return self.row.adapter

    @property
    def pooled(self) -> bool:
        """Whether its row is an embedding: hidden states are wanted, and no logits."""
        return self.row.request.pooling is not None

    @property
    def end(self) -> int:
        """The position after the last of them."""
        return self.start + len(self.token_ids)

    @property
    def choosing(self) -> int:
        """Of how many of the last tokens the logits choose new tokens: none, or one more than are drafted."""
        return self.wanted - self.scored

    @property
    def drafted(self) -> tuple[int, ...]:
        """What was drafted after the row's last token; the logits of each token but the last one judge the next."""
        return self.token_ids[len(self.token_ids) - self.choosing + 1 :] if self.choosing else ()


class StepPlan(Struct, frozen=True):
    """One step: slots to free, then copies between slots, then tokens to run."""

    released: tuple[int, ...]
    copies: tuple[Copy, ...]
    runs: tuple[Run, ...]


class Sampled(Struct, frozen=True):
    """What the sampler chose for a row."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass
class Counters:
    """What was done since the start."""

    prompt_tokens: int = 0
    """Of the prompts of all sequences that got a slot, those that were reused included."""
    cached_tokens: int = 0
    """Of these, reused and not run."""
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of these, found right."""
    steps: int = 0


Outcome = TokenEvent | RequestError
Result = Sequence[Sampled] | RequestError
Scores = Sequence[TokenLogprob] | RequestError
"""Of the prompt's tokens that a run scores."""
Sums = Sequence[float]
"""Of the hidden states of a run's tokens."""
