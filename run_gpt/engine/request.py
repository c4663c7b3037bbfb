"""Input and output of an engine: requests of token ids, and events of text and tokens. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from msgspec import Struct

from run_gpt.engine.grammar import Grammar
from run_gpt.engine.text import Unstopped
from run_gpt.engine.timing import Timing

FinishReason = Literal["stop", "length"]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters for the choice of the next token from the logits. The defaults are greedy and change no logits."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """Number of likeliest tokens to keep; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    """Number of tokens before which no id that ends a sequence is chosen."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end this request's sequences beside those that end any."""
    ignore_eos: bool = False
    """True when only `stop_token_ids` end a sequence: the ids that end any other are tokens like the rest."""
    seed: int | None = None
    logprobs: int | None = None
    """Number k of likeliest tokens whose log-probabilities are returned with the chosen token's; None: none at all."""

    @cached_property
    def greedy(self) -> bool:
        """True when only `min_new_tokens` or a grammar can rule out the likeliest token."""
        changed = self.presence_penalty or self.frequency_penalty or self.logit_bias or self.no_repeat_ngram_size
        return not (self.do_sample or changed or self.repetition_penalty != 1.0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request for one or more sequences that continue one prompt."""

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    """Largest number of tokens of the answer. With 0 the prompt is run, and the empty answer ends with "length"."""
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    unstopped: Callable[[], Unstopped] | None = None
    """Maker, for each sequence, of the function that knows where the texts of `stop` do not count; None: nowhere."""
    sequences: int = 1
    num_beams: int = 1
    """Number of beams. Above 1: beam search, which runs beside the batch and gives all its text at the end."""
    length_penalty: float = 1.0
    adapter: str | None = None
    """Name of a loaded LoRA adapter; None: the model itself."""
    grammar: Grammar | None = None
    """Grammar that each sequence follows by itself. It does not go with beam search, `min_new_tokens` or
    `no_repeat_ngram_size`, which may force what it forbids: the code that makes the request refuses these."""
    pooling: Pooling | None = None
    """Pooling of an embedding over all of the prompt's tokens or the last one. If set, there is no answer, and
    `max_new_tokens` is 0."""
    prompt_logprobs: int | None = None
    """Number k of likeliest tokens. If set, each prompt token but the first gets its log-probability given the tokens
    before it, and those of the k likeliest tokens at its position. Not with beam search or `pooling`."""
    deadline: float | None = None
    """Time on time.monotonic's clock at which an unfinished request ends with DeadlineExceeded. None: never."""
    cache_space: str = ""
    """Space of the prefix reuse: its sequences take over the prompts of this space's sequences, and of no other."""
    keeps_ids: bool = False
    """True when the last event of each sequence has the ids of all its tokens."""
    whole: bool = False
    """True when only the complete answer is needed: one event for each sequence, with the end."""

    @property
    def longest(self) -> int:
        """Largest number of tokens that one of its sequences may have."""
        return len(self.prompt_ids) + self.max_new_tokens


class TokenLogprob(Struct, frozen=True):
    """Token with the model's own log-probability, and the likeliest tokens at its position with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    shown: int | None = None
    """Number of bytes that it, and the tokens that share a character with it, have in the answer's text. None: all; 0
    for a token that ends the answer, or is of a stop sequence."""


class TokenEvent(Struct, frozen=True):
    """New text and tokens of one sequence of a request. Under load one event covers several tokens."""

    index: int
    """Number of the sequence within its request, from 0."""
    text: str
    """New text; empty while a character or a possible stop sequence is incomplete."""
    tokens: int
    """Number of new tokens."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    """Number of prompt tokens that were reused and not run; the same in each of the sequence's events."""
    embedding: tuple[float, ...] = ()
    """Pooled hidden state after the last norm, of length 1; in the only event of a request with `pooling`."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of the prompt's tokens but the first; in a sequence's first event, if they were requested."""
    timing: Timing | None = None
    """Times of the sequence; in its last event."""
    token_ids: tuple[int, ...] = ()
    """Ids of all tokens of the answer; in a sequence's last event, if the request `keeps_ids`."""
    stop: str | None = None
    """Text of `Request.stop` that ended the sequence; in its last event."""

    def __add__(self, later: "TokenEvent") -> "TokenEvent":
        """Return this event and a later one of the same sequence as one event."""
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
            later.token_ids,
            later.stop,
        )
