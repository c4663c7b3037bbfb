"""Log-probabilities of prompt tokens, computed from a step's logits."""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch

from run_gpt.engine.plan import ScheduledTokens, Scores
from run_gpt.engine.request import TokenLogprob
from run_gpt.errors import InternalError


def score_prompts(logits: torch.Tensor, runs: Sequence[ScheduledTokens]) -> list[Scores]:
    """Return for each run with `num_scored` > 0 that many scores, or the error that ends its sequence.

    Each score is that of the prompt token after one of the run's first `num_scored` tokens. `logits`: [sum of the runs'
    `num_logits`, vocabulary], any float type; they are not changed.
    """
    ends = accumulate(run.num_logits for run in runs)
    places = [
        range(end - run.num_logits, end - run.num_sampled)
        for end, run in zip(ends, runs, strict=True)
        if run.num_scored
    ]
    return _score(logits, places, [run for run in runs if run.num_scored])


def _score(logits: torch.Tensor, places: Sequence[range], runs: Sequence[ScheduledTokens]) -> list[Scores]:
    """Score all runs in one pass. `places`: positions of their logits. A run that raises an error fails alone."""
    try:
        return _scores(logits, places, runs) if runs else []
    except Exception as error:
        if len(runs) == 1:
            return [InternalError(f"scoring the prompt failed: {error}")]
        return [_score(logits, [place], [run])[0] for place, run in zip(places, runs, strict=True)]


def _scores(logits: torch.Tensor, places: Sequence[range], runs: Sequence[ScheduledTokens]) -> list[Scores]:
    parts = [logits[place.start : place.stop] for place in places]
    logprobs = (parts[0] if len(parts) == 1 else torch.cat(parts)).float().log_softmax(-1)
    targets = [
        token for run in runs for token in run.sequence.token_ids[run.start + 1 : run.start + run.num_scored + 1]
    ]
    chosen = logprobs.gather(-1, torch.tensor(targets, device=logprobs.device).unsqueeze(-1)).squeeze(-1).tolist()
    counts = [run.sequence.request.prompt_logprobs or 0 for run in runs]
    top = logprobs.topk(min(max(counts), logprobs.shape[-1]))
    likeliest = [list(zip(*pair, strict=True)) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    scores: list[Scores] = []
    start = 0
    for run, count in zip(runs, counts, strict=True):
        sequences = range(start, start + run.num_scored)
        start = sequences.stop
        if any(
            math.isnan(chosen[sequence]) for sequence in sequences
        ):  # one NaN among the logits makes all of them NaN
            scores.append(InternalError("the model gave NaN for its logits: try another precision (bf16 or fp32)"))
        else:
            scores.append(
                [
                    TokenLogprob(targets[sequence], chosen[sequence], tuple(likeliest[sequence][:count]))
                    for sequence in sequences
                ]
            )
    return scores
