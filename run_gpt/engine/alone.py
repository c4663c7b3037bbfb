"""The runner for models without a plain key-value cache (state-space and recurrent ones): one row after the other."""

import copy
import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch

from run_gpt.engine.beams import beam_search, end_ids_of
from run_gpt.engine.request import Request
from run_gpt.engine.scheduler import Chunk

# What transformers' models call that which they carry from one step to the next.
_STATES = ("past_key_values", "cache_params", "state")


class AloneRunner:
    """A ModelRunner that keeps a state for each row and never runs two rows together."""

    def __init__(self, model: Any):
        self._model = model
        self._states: dict[int, Any] = {}
        takes = inspect.signature(model.forward).parameters
        self._name = next(name for name in _STATES if name in takes)
        self.end_ids = end_ids_of(model)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """See ModelRunner. These models take a prompt whole or token by token, so the last part runs all of it."""
        whole = [chunk for chunk in chunks if chunk.last]
        self.release([chunk.slot for chunk in whole])
        logits = [self._forward(chunk.slot, chunk.row.request.prompt_ids) for chunk in whole]
        return torch.cat(logits) if logits else torch.empty(0, 0)

    def fork(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See ModelRunner."""
        for source, target in pairs:
            self._states[target] = copy.deepcopy(self._states[source])

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
        """See ModelRunner."""
        return torch.cat([self._forward(slot, [token]) for slot, token in zip(slots, token_ids, strict=True)])

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner."""
        for slot in slots:
            self._states.pop(slot, None)

    def reset(self) -> None:
        """See ModelRunner."""
        self._states.clear()

    def beam_search(self, request: Request, stopped: threading.Event) -> list[list[int]]:
        """See ModelRunner."""
        return beam_search(self._model, request, stopped)

    def _forward(self, slot: int, token_ids: Sequence[int]) -> torch.Tensor:
        """[1, vocabulary]: the logits after the last of these tokens."""
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        out = self._model(ids, **{self._name: self._states.get(slot)}, use_cache=True)
        self._states[slot] = out[self._name]
        return out.logits[:, -1]  # type: ignore[no-any-return]
