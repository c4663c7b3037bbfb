"""The only code that calls the model: runs of tokens in, logits out."""

import math
import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from run_gpt.engine.request import Request
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.scheduler import Copy, Run

BROKEN = -1
"""Instead of a token: one of the row's logits is NaN."""


class ModelRunner(Protocol):
    """Runs a model over slots, each of which holds the cache of one sequence of tokens.

    The order within a step: `release`, `copy`, `forward`.
    """

    end_ids: tuple[int, ...]
    """The token ids that end a sequence."""
    reuses_prefixes: bool
    """Whether `copy` works and a run may start in the middle of what a slot holds; False for models with a state."""
    cheap_tokens: int
    """Tokens up to which a step takes about as long as with one; speculation fills them. 1: never speculate."""
    cache_bytes_per_token: int
    """Memory of one token in one slot; 0: not known, or no such cache."""

    def forward(self, runs: Sequence[Run]) -> torch.Tensor:
        """Run these tokens, parts of prompts and continued rows together; at most one run for each slot.

        A run that starts before the end of what its slot holds replaces what is there from `start` on (a rejected
        draft, a reused slot); one that starts at 0 begins its slot anew.

        Returns [sum of the runs' `wanted`, vocabulary], in the runs' order: the logits after each wanted token. They
        may be overwritten by the next call.
        """
        ...

    def likeliest(self, logits: torch.Tensor) -> list[int]:
        """Return the likeliest token of each row of what `forward` gave, or some of its rows; BROKEN where one is NaN.

        `logits`: [rows, vocabulary].
        """
        return likeliest(logits)

    def embed(self, runs: Sequence[Run]) -> torch.Tensor:
        """Run these tokens as `forward` does, for their hidden states.

        Returns [runs, hidden size] in fp32: the sum over each run's tokens of the state after the model's last norm.
        """
        ...

    def add_adapter(self, lora: Lora) -> None:
        """Let runs have this adapter. Raises ValueError if it does not fit the model, or this runner."""
        ...

    def remove_adapter(self, lora: Lora) -> None:
        """Forget this adapter, which no row has any more."""
        ...

    def copy(self, copies: Sequence[Copy]) -> None:
        """One after the other: let `target` hold the first `length` tokens of `source`, whose row may still run."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Free what these slots hold."""
        ...

    def reset(self) -> None:
        """Free what all slots hold; after a failed step."""
        ...

    def beam_search(self, request: Request, stopped: threading.Event, lora: Lora | None = None) -> list[list[int]]:
        """The answers' token ids, best first; called from a thread of its own. Ends early once `stopped` is set."""
        ...


def likeliest(logits: torch.Tensor) -> list[int]:
    """Return the likeliest token of each row, or BROKEN. `logits`: [rows, vocabulary].

    A step's results lie between two runs of the model, with the caches full of its weights: there each operation of
    torch takes some 100 us, hence numpy where it can be.
    """
    rows = range(len(logits))
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        numbers = logits.numpy()
        chosen = numbers.argmax(-1)
        tokens, values = chosen.tolist(), numbers[rows, chosen].tolist()
    else:
        best = logits.argmax(-1)
        tokens, values = best.tolist(), logits[rows, best].tolist()
    # argmax takes a NaN for the largest number, so that one anywhere in a row shows in what it chose.
    return [BROKEN if math.isnan(value) else token for token, value in zip(tokens, values, strict=True)]
