"""From logits to tokens: one pass over all rows, each with parameters of its own; nothing leaks between rows."""

from collections import Counter
from collections.abc import Sequence

import torch

from run_gpt.engine.request import SamplingParams, TokenLogprob
from run_gpt.engine.scheduler import Row, Sampled
from run_gpt.errors import InternalError, RequestError


class Sampler:
    """Chooses the next token of each row.

    The order is that of transformers' generate: penalties and bans, temperature, top-k, top-p, min-p, draw. A draw
    takes one uniform number from the row's own generator (inverse transform sampling), so that a seed gives the same
    tokens whatever else is in the batch.
    """

    def __init__(self, end_ids: Sequence[int]):
        self._end_ids = list(end_ids)

    def __call__(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Sampled | RequestError]:
        """One result for each row. `logits`: [rows, vocabulary], any float type; they may be changed."""
        broken = logits.isnan().any(-1).tolist()
        logits = logits.float()
        logprobs = {i: self._logprobs(logits[i]) for i, row in enumerate(rows) if _wants_logprobs(row)}
        for i, row in enumerate(rows):
            self._penalise(logits[i], row)
        tokens = logits.argmax(-1)
        drawn = [i for i, row in enumerate(rows) if row.request.sampling.do_sample and not broken[i]]
        if drawn:
            tokens[drawn] = self._draw(logits[drawn], [rows[i] for i in drawn])
        return [
            InternalError("the model gave NaN for its logits: try another precision (bf16 or fp32)")
            if broken[i]
            else Sampled(token, _token_logprob(logprobs.get(i), token, rows[i].request.sampling.logprobs))
            for i, token in enumerate(tokens.tolist())
        ]

    def _penalise(self, logits: torch.Tensor, row: Row) -> None:
        """Penalties, bans and biases of one row, in place. `logits`: [vocabulary]."""
        params = row.request.sampling
        if params.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(row.history)), device=logits.device)
            values = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if (params.presence_penalty or params.frequency_penalty) and row.token_ids:
            counts = Counter(row.token_ids)
            answered = torch.tensor(list(counts), device=logits.device)
            times = torch.tensor(list(counts.values()), device=logits.device, dtype=logits.dtype)
            logits[answered] -= params.presence_penalty + params.frequency_penalty * times
        for token_id, bias in params.logit_bias.items():
            logits[token_id] += bias
        if params.no_repeat_ngram_size:
            logits[_repeats(row.history, params.no_repeat_ngram_size)] = -torch.inf
        if len(row.token_ids) < params.min_new_tokens:
            logits[self._end_ids] = -torch.inf

    def _draw(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """A token id for each row: [rows]. `logits`: [rows, vocabulary]; all -inf but one is fine."""
        params = [row.request.sampling for row in rows]
        logits = logits / _column([p.temperature for p in params], logits)
        if any(p.top_k or p.top_p < 1 or p.min_p for p in params):
            ordered, order = logits.sort(-1, descending=True)
            # Back into the vocabulary's order: a row must not draw otherwise because another one truncates.
            logits = logits.scatter(-1, order, _truncate(ordered, params))
        mass = logits.double().softmax(-1).cumsum(-1)
        uniform = _column([row.random.random() for row in rows], mass)
        # The first token whose cumulated mass passes the number; the clamp guards the rounding of the last sum.
        index = torch.searchsorted(mass, uniform * mass[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
        return index.squeeze(-1)

    @staticmethod
    def _logprobs(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)


def _truncate(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Top-k, then top-p, then min-p; the likeliest token always stays. `logits`: [rows, vocabulary], descending."""
    vocabulary = logits.shape[-1]
    rank = torch.arange(vocabulary, device=logits.device)
    top_k = _column([p.top_k or vocabulary for p in params], logits)
    logits = logits.masked_fill(rank >= top_k, -torch.inf)
    probability = logits.softmax(-1)
    before = probability.cumsum(-1) - probability
    logits = logits.masked_fill((before >= _column([p.top_p for p in params], logits)) & (rank > 0), -torch.inf)
    floor = _column([p.min_p for p in params], logits) * probability[:, :1]
    return logits.masked_fill(probability < floor, -torch.inf)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[rows, 1], of the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _repeats(history: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` tokens which stands in `history` already."""
    end = history[len(history) - size + 1 :]
    return [history[i + size - 1] for i in range(len(history) - size + 1) if history[i : i + size - 1] == end]


def _wants_logprobs(row: Row) -> bool:
    return row.request.sampling.logprobs is not None


def _token_logprob(logprobs: torch.Tensor | None, token_id: int, count: int | None) -> TokenLogprob | None:
    if logprobs is None:
        return None
    top = logprobs.topk(count or 0)
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), likeliest)
