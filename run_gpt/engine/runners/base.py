"""Base of the runners of a transformers model: its adapters, ends of a sequence, and beam search by its own pass."""

import threading
from typing import Any

import torch

from run_gpt.engine.request import Request
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.lora import Adapters, Lora
from run_gpt.engine.runners.rotary import Lengths
from run_gpt.process.devices import input_device


class TransformersRunner(ModelRunner):
    """ModelRunner of one transformers model, without the steps."""

    can_reorder_cache = True
    """True when transformers can reorder the model's states for beams; else each step runs the whole text again."""

    def __init__(self, model: Any):
        self._model = model
        self._adapters = Adapters(model)
        self._rotary = Lengths(model)
        self.end_ids = end_ids_of(model)

    def add_adapter(self, lora: Lora) -> None:
        """See ModelRunner."""
        self._adapters.add(lora)

    def remove_adapter(self, lora: Lora) -> None:
        """See ModelRunner."""
        self._adapters.remove(lora)

    def beam_search(self, request: Request, stopped: threading.Event, lora: Lora | None = None) -> list[list[int]]:
        """See ModelRunner. The model's own forward pass runs it, by transformers' `generate`."""
        from transformers import StoppingCriteriaList

        def stop(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.full((ids.shape[0],), stopped.is_set(), device=ids.device)

        params = request.sampling
        ids = torch.tensor([request.prompt_ids], device=input_device(self._model))
        with torch.inference_mode(), self._adapters.rows([lora]):
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
                use_cache=self.can_reorder_cache,
                pad_token_id=self.end_ids[0] if self.end_ids else 0,
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        return [_until_end(answer, self.end_ids) for answer in answers[:, ids.shape[1] :].tolist()]


def end_ids_of(model: Any) -> tuple[int, ...]:
    """Return the token ids that end a sequence, from the model's generation settings, else from its configuration."""
    ends = model.generation_config.eos_token_id
    ends = getattr(model.config.get_text_config(), "eos_token_id", None) if ends is None else ends
    return tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)


def _until_end(answer: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """Return the answer up to and including its end-of-sequence id; the rest is padding."""
    ends = [i for i, token in enumerate(answer) if token in end_ids]
    return answer[: ends[0] + 1] if ends else answer
