"""Choice of each sequence's tokens from a step's logits. Drafts are checked by the same sampling as without drafts.

The first token of a sequence is sampled as usual. If it equals the drafted token, the logits after the draft are valid
for the text so far, and the next token is sampled from them, and so on. So a greedy answer does not change, and a
sampled one is drawn from the same distribution, with the same number of draws for each of its tokens.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

from run_gpt.engine.plan import Position, Result, Sampled, ScheduledTokens
from run_gpt.engine.sampler import Sampler
from run_gpt.errors import InternalError, RequestError


def choose_tokens(sampler: Sampler, logits: torch.Tensor, runs: Sequence[ScheduledTokens]) -> list[Result]:
    """Return for each run with `num_sampled` > 0 its tokens, or the error that ends its sequence.

    There is one token more than accepted drafts. `logits`: [sum of the runs' `num_logits`, vocabulary]. There is one
    pass for each position in the drafts, over all sequences together.
    """
    ends = accumulate(run.num_logits for run in runs)
    offsets = [end - run.num_sampled for end, run in zip(ends, runs, strict=True) if run.num_sampled]
    runs = [run for run in runs if run.num_sampled]
    drafted = [run.drafted for run in runs]
    results: list[list[Sampled]] = [[] for _ in runs]
    errors: dict[int, RequestError] = {}
    likeliest = sampler.likeliest(logits) if runs else []
    going, place = list(range(len(runs))), 0
    while going:
        positions = [Position(runs[i].sequence, drafted[i][:place], offsets[i] + place) for i in going]
        right = []
        for i, token in zip(going, _sample(sampler, logits, positions, likeliest), strict=True):
            if isinstance(token, RequestError):
                errors[i] = token
                continue
            results[i].append(token)
            # Nothing is sampled after the end of a sequence, even if more was drafted: a grammar allows nothing there.
            over = token.token_id in runs[i].sequence.end_ids
            if drafted[i][place : place + 1] == (token.token_id,) and not over:
                right.append(i)
        going, place = right, place + 1
    return [errors.get(i, result) for i, result in enumerate(results)]


def _sample(
    sampler: Sampler, logits: torch.Tensor, positions: Sequence[Position], likeliest: Sequence[int]
) -> list[Sampled | RequestError]:
    """Sample a token for each position. A sequence whose parameters or grammar break the sampler fails alone."""
    try:
        return sampler(logits, positions, likeliest)
    except BaseException as error:  # a grammar library's panic is no Exception
        if len(positions) == 1:
            return [error if isinstance(error, RequestError) else InternalError(f"sampling failed: {error}")]
        return [_sample(sampler, logits, [at], likeliest)[0] for at in positions]
