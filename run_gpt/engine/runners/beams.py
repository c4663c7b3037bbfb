"""Beam search and end-of-sequence ids, which every runner of a transformers model takes from transformers itself."""

import threading
from typing import Any

import torch

from run_gpt.engine.request import Request
from run_gpt.engine.runners.lora import Adapters, Lora
from run_gpt.process.devices import input_device


def end_ids_of(model: Any) -> tuple[int, ...]:
    """Return the token ids that end a sequence, from the model's generation settings, else from its configuration."""
    ends = model.generation_config.eos_token_id
    ends = model.config.eos_token_id if ends is None else ends
    return tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)


def beam_search(
    model: Any,
    request: Request,
    stopped: threading.Event,
    adapters: Adapters,
    lora: Lora | None,
    *,
    use_cache: bool = True,
) -> list[list[int]]:
    """Return the answers' token ids, best first, each up to its end of sequence. Ends early once `stopped` is set.

    `adapters`: the model's adapters; all beams use `lora`. Without `use_cache` each step runs the whole text again,
    for models whose states transformers cannot reorder.
    """
    from transformers import StoppingCriteriaList

    def stop(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), stopped.is_set(), device=ids.device)

    params, end_ids = request.sampling, end_ids_of(model)
    ids = torch.tensor([request.prompt_ids], device=input_device(model))
    with torch.inference_mode(), adapters.rows([lora]):
        answers = model.generate(
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
            use_cache=use_cache,
            pad_token_id=end_ids[0] if end_ids else 0,
            stopping_criteria=StoppingCriteriaList([stop]),
        )
    return [_until_end(answer, end_ids) for answer in answers[:, ids.shape[1] :].tolist()]


def _until_end(answer: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """Return the answer up to and including its end-of-sequence id; the rest is padding."""
    ends = [i for i, token in enumerate(answer) if token in end_ids]
    return answer[: ends[0] + 1] if ends else answer
