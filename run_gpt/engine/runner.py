"""The only code that calls the model: prompts and tokens in, logits out."""

import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from run_gpt.engine.request import Request
from run_gpt.engine.scheduler import Chunk


class ModelRunner(Protocol):
    """Runs a model over slots, each of which holds the cache of one row."""

    end_ids: tuple[int, ...]
    """The token ids that end a sequence."""

    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Run these parts of prompts. A part that starts at 0 begins its slot anew; others follow what is there.

        Returns [chunks that are the last of their prompt, vocabulary]: the logits of the token after the prompt.
        """
        ...

    def fork(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy what the first slot of each pair holds after its prompt, which this step ended, into the second."""
        ...

    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
        """Continue each slot by one token. Returns [rows, vocabulary]: the token after it."""
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Free what these slots hold."""
        ...

    def reset(self) -> None:
        """Free what all slots hold; after a failed step."""
        ...

    def beam_search(self, request: Request, stopped: threading.Event) -> list[list[int]]:
        """The answers' token ids, best first; called from a thread of its own. Ends early once `stopped` is set."""
        ...
