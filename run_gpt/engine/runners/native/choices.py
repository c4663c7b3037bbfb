"""Choices of a step's tokens in the form that the kernels need."""

from array import array
from collections.abc import Sequence
from ctypes import Structure, c_double, c_float, c_int32, c_void_p
from operator import attrgetter
from typing import Any

import torch

from run_gpt.engine.plan import Position
from run_gpt.engine.runners.native.binding import Context

NUMBERS: dict[str, Any] = {
    "presence_penalty": c_double,
    "frequency_penalty": c_double,
    "do_sample": c_int32,
    "top_k": c_int32,
    "no_repeat_ngram_size": c_int32,
    "repetition_penalty": c_float,
    "temperature": c_float,
    "top_p": c_float,
    "min_p": c_float,
}
"""Sampling parameters that the kernels take as they are, with their types."""
ELSEWHERE = {
    "logit_bias": "the arrays `biased` and `biases`",
    "min_new_tokens": "ids in `banned` until then",
    "stop_token_ids": "the same",
    "ignore_eos": "changes no choice",
    "seed": "the sequence's own generator, which gives `uniform`",
    "logprobs": "come from the logits as they are",
}
"""Fate of the other sampling parameters."""
_parameters = attrgetter(*NUMBERS)


class ChoiceStruct(Structure):
    """See Choice in sampling.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("logits", "ids", "banned", "biased", "biases")),
        *((name, c_int32) for name in ("prompt", "answer", "bans", "bias_count")),
        ("uniform", c_double),
        *NUMBERS.items(),
    )


def choose(context: Context, logits: torch.Tensor, positions: Sequence[Position], end_ids: Sequence[int]) -> list[int]:
    """Return a token for each position, as ModelRunner.choose. `logits`: in fp32 on the CPU, contiguous."""
    kept: list[array[Any]] = []
    """Arrays that the structures point to."""
    start, row_bytes = logits.data_ptr(), logits.shape[-1] * 4
    choices = (ChoiceStruct * len(positions))()
    for i, at in enumerate(positions):
        choices[i] = ChoiceStruct(*_numbers_of(at, start + at.row * row_bytes, end_ids, kept))
    tokens = array("i", bytes(4 * len(positions)))
    address, _ = tokens.buffer_info()
    context.kernels.choose(context.handle, choices, len(positions), logits.shape[-1], address)
    return tokens.tolist()


def _numbers_of(at: Position, logits: int, end_ids: Sequence[int], kept: "list[array[Any]]") -> tuple[Any, ...]:
    """Return the numbers of a position's ChoiceStruct. `logits`: address of its row."""
    params, ids = at.params, at.token_ids
    prompt, bias = len(at.sequence.request.prompt_ids), params.logit_bias
    banned = array("i", at.held_back(end_ids))
    arrays = (ids, banned, array("i", bias), array("f", bias.values()))
    kept += arrays
    return (
        logits,
        *(numbers.buffer_info()[0] for numbers in arrays),
        *(prompt, len(ids) - prompt, len(banned), len(bias)),
        at.sequence.random.random() if params.do_sample else 0.0,
        *_parameters(params),
    )
