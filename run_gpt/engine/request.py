"""What goes into an engine and what comes out: a request of token ids, and events of text and tokens. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from msgspec import Struct

from run_gpt.engine.grammar import Grammar
from run_gpt.engine.timing import Timing

FinishReason = Literal["stop", "length"]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen from the logits; the defaults change nothing and are greedy."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None
    """None: no log-probabilities; k: those of the chosen token and of the k likeliest."""

    @cached_property
    def greedy(self) -> bool:
        """True when nothing but `min_new_tokens` and a grammar may speak against the likeliest token."""
        changed = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.no_repeat_ngram_size
        return not (self.do_sample or changed or self.repetition_penalty != 1.0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, and how many sequences to make of it."""

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    """0: the prompt is run, and the answer is empty and ends with "length"."""
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    sequences: int = 1
    num_beams: int = 1
    """Above 1: beam search, which runs beside the batch and gives all its text at the end."""
    length_penalty: float = 1.0
    adapter: str | None = None
    """The name of a loaded LoRA adapter; None: the model itself."""
    grammar: Grammar | None = None
    """What the answer must be; each sequence follows it by itself. Not with beam search, `min_new_tokens` or
    `no_repeat_ngram_size`, which may want what it forbids: who makes the request refuses these."""
    pooling: Pooling | None = None
    """Set: no answer, but an embedding of the prompt, of all its tokens or of the last one; `max_new_tokens` is 0."""
    prompt_logprobs: int | None = None
    """Set: each token of the prompt but the first gets its log-probability after those before it, with that of the k
    likeliest tokens there. Not with beams, nor with `pooling`."""
    deadline: float | None = None
    """On time.monotonic's clock; a request that has not ended by then ends with DeadlineExceeded. None: never."""
    whole: bool = False
    """The answer is wanted only when it is complete: one event for each sequence, with the end."""


class TokenLogprob(Struct, frozen=True):
    """A token, its log-probability under the model itself, and the likeliest tokens in its place with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(Struct, frozen=True):
    """What is new of one sequence of a request; under load one event covers several tokens."""

    index: int
    """Which of the request's sequences, from 0."""
    text: str
    """New text; empty while a character or a possible stop text is incomplete."""
    tokens: int
    """Number of new tokens."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    """Tokens of the prompt that were reused and not run: the same in each of the sequence's events."""
    embedding: tuple[float, ...] = ()
    """In the only event of a request with `pooling`: the pooled hidden state after the last norm, of length 1."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """In a sequence's first event, if the request asks for them: of each token of the prompt but the first."""
    timing: Timing | None = None
    """In a sequence's last event: when what happened to it."""

    def __add__(self, later: "TokenEvent") -> "TokenEvent":
        """This event and a later one of the same sequence as one."""
        return TokenEvent(
            self.index,
            self.text + later.text,
            self.tokens + later.tokens,
            later.finish_reason,
            self.logprobs + later.logprobs,
            later.cached_tokens,
            later.embedding,
            self.prompt_logprobs + later.prompt_logprobs,
            later.timing,
        )
