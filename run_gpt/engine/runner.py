"""Model runner, the only code that calls the model: runs of tokens in, logits out."""

import math
import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from run_gpt.engine.choice import choose
from run_gpt.engine.plan import Position, ScheduledTokens
from run_gpt.engine.request import Request
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.slots import Copy, Ring

BROKEN = -1
"""Value instead of a token id when one of the row's logits is NaN."""


class ModelRunner(Protocol):
    """Runner of a model over slots. Each slot holds the KV cache of one sequence.

    The order within a step: `release`, `copy`, `forward`.
    """

    end_ids: tuple[int, ...]
    """Token ids that end a sequence."""
    reuses_prefixes: bool
    """True when `copy` works and a run may start within a slot's tokens; False for models with a recurrent state."""
    cheap_tokens: int
    """Number of tokens up to which a step takes about as long as with one; drafts fill them. 1: no speculation."""
    cache_bytes_per_token: int
    """Bytes of one token in one slot; 0 when they are not known, or when there is no such cache."""
    ring: Ring | None = None
    """Bound of the cache of layers with a sliding window; None when all layers hold all tokens."""

    def forward(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """Run these tokens, parts of prompts and decoding sequences together; at most one run for each slot.

        A run that starts before the end of its slot's tokens replaces them from `start` on (a rejected draft, a reused
        slot). A run that starts at 0 empties its slot first.

        Returns [sum of the runs' `num_logits`, vocabulary], in the runs' order: the logits after each of these
        tokens. The next call may overwrite them.
        """
        ...

    def likeliest(self, logits: torch.Tensor) -> list[int]:
        """Return the likeliest token of each row, or BROKEN for a row with a NaN.

        `logits`: [rows, vocabulary], the result of `forward` or some of its rows.
        """
        return likeliest(logits)

    def choose(self, logits: torch.Tensor, positions: Sequence[Position], end_ids: Sequence[int]) -> list[int]:
        """Return a token for each position by its parameters; one random number is drawn for each that samples.

        `logits`: the result of `forward`, without a NaN in these rows; they are not changed.
        """
        return choose(logits, positions, end_ids)

    def embed(self, runs: Sequence[ScheduledTokens]) -> torch.Tensor:
        """Run these tokens as `forward` does, for their hidden states.

        Returns [runs, hidden size] in fp32: for each run, the sum over its tokens of the state after the last norm.
        """
        ...

    def add_adapter(self, lora: Lora) -> None:
        """Add an adapter that runs may use. Raises ValueError if it does not fit the model, or this runner."""
        ...

    def remove_adapter(self, lora: Lora) -> None:
        """Remove this adapter. No sequence uses it any more."""
        ...

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copy the first `length` tokens of each `source` to `target`, in order. The source may still be in use."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Empty these slots and free their memory."""
        ...

    def reset(self) -> None:
        """Empty all slots and free their memory, after a failed step."""
        ...

    def beam_search(self, request: Request, stopped: threading.Event, lora: Lora | None = None) -> list[list[int]]:
        """Return the answers' token ids, best first; called from a separate thread. Ends early if `stopped` is set."""
        ...


def likeliest(logits: torch.Tensor) -> list[int]:
    """Return the likeliest token of each row, or BROKEN. `logits`: [rows, vocabulary].

    This runs between two forward passes, when the CPU's caches are full of weights. There each torch operation takes
    some 100 us, so numpy is used where possible.
    """
    rows = range(len(logits))
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        numbers = logits.numpy()
        chosen = numbers.argmax(-1)
        tokens, values = chosen.tolist(), numbers[rows, chosen].tolist()
    else:
        best = logits.argmax(-1)
        tokens, values = best.tolist(), logits[rows, best].tolist()
    # argmax treats a NaN as the largest number, so a NaN anywhere in a row is the value that it chooses.
    return [BROKEN if math.isnan(value) else token for token, value in zip(tokens, values, strict=True)]
