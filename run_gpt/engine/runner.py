"""The only code that calls the model: prompts and tokens in, logits out."""

import inspect
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from run_gpt.engine.request import Request


class ModelRunner(Protocol):
    """Runs a model over slots, each of which holds the cache of one row."""

    end_ids: tuple[int, ...]
    """The token ids that end a sequence."""

    vocabulary: int
    """Number of token ids; the width of the logits."""

    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run whole prompts into these slots, forgetting what they held. Returns [rows, vocabulary]: the next token."""
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


class GenericRunner:
    """Runs any causal language model of transformers, one row at a time, each with a cache of its own.

    Exact by construction: a row never sees another one.
    """

    def __init__(self, model: Any):
        self._model = model
        self._caches: dict[int, Any] = {}
        takes = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        config = model.generation_config
        ends = config.eos_token_id if config.eos_token_id is not None else model.config.eos_token_id
        self.end_ids = tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])

    @torch.inference_mode()
    def prefill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """See ModelRunner."""
        self.release(slots)
        return torch.cat([self._forward(slot, prompt) for slot, prompt in zip(slots, prompts, strict=True)])

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], token_ids: Sequence[int]) -> torch.Tensor:
        """See ModelRunner."""
        return torch.cat([self._forward(slot, [token]) for slot, token in zip(slots, token_ids, strict=True)])

    def release(self, slots: Sequence[int]) -> None:
        """See ModelRunner."""
        for slot in slots:
            self._caches.pop(slot, None)

    def reset(self) -> None:
        """See ModelRunner."""
        self._caches.clear()

    def beam_search(self, request: Request, stopped: threading.Event) -> list[list[int]]:
        """See ModelRunner; transformers' own beam search."""
        from transformers import StoppingCriteriaList

        def stop(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), stopped.is_set(), device=ids.device)

        params = request.sampling
        ids = torch.tensor([request.prompt_ids], device=self._model.device)
        with torch.inference_mode():
            answers = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=request.num_beams,
                num_return_sequences=request.sequences,
                length_penalty=request.length_penalty,
                max_new_tokens=request.max_new_tokens,
                min_new_tokens=params.min_new_tokens,
                repetition_penalty=params.repetition_penalty,
                no_repeat_ngram_size=params.no_repeat_ngram_size,
                early_stopping=True,
                pad_token_id=self.end_ids[0] if self.end_ids else 0,
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        return [self._cut(answer) for answer in answers[:, ids.shape[1] :].tolist()]

    def _cut(self, answer: list[int]) -> list[int]:
        """The answer up to and with its end of sequence; what follows is padding."""
        ends = [i for i, token in enumerate(answer) if token in self.end_ids]
        return answer[: ends[0] + 1] if ends else answer

    def _forward(self, slot: int, token_ids: Sequence[int]) -> torch.Tensor:
        """[1, vocabulary]: the logits after the last of these tokens."""
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        out = self._model(ids, past_key_values=self._caches.get(slot), use_cache=True, **self._last_only)
        self._caches[slot] = out.past_key_values
        return out.logits[:, -1]  # type: ignore[no-any-return]
