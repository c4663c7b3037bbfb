"""Sampling of tokens from logits, in one pass over all sequences. Each has its own parameters; none affects another."""

from array import array
from collections import Counter, abc
from collections.abc import Callable, Iterable

import torch
from msgspec import Struct
from torch.nn import functional as F

from run_gpt.engine.grammar import Matcher
from run_gpt.engine.plan import Sampled, Sequence
from run_gpt.engine.request import SamplingParams, TokenLogprob
from run_gpt.engine.runner import BROKEN, likeliest
from run_gpt.engine.slots import token_array
from run_gpt.errors import InternalError, RequestError

CANDIDATES = 256
"""Number of likeliest tokens that are tried before a whole vocabulary is sorted."""
BLOCK = 256
"""Number of weights that are summed before the sums are cumulated."""


class Position(Struct, frozen=True):
    """Position at which a token is sampled: after a sequence's token_ids and its accepted drafts."""

    sequence: Sequence
    accepted: tuple[int, ...] = ()

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the request."""
        return self.sequence.request.sampling

    @property
    def token_ids(self) -> "array[int]":
        """Token ids of the prompt and the answer before this position."""
        return self.sequence.token_ids + token_array(self.accepted)

    @property
    def answer(self) -> "array[int]":
        """Token ids of the answer before this position."""
        return self.token_ids[len(self.sequence.request.prompt_ids) :]

    @property
    def matcher(self) -> Matcher | None:
        """Matcher of the sequence's grammar at this position; None without a grammar."""
        return None if self.sequence.grammar is None else self.sequence.grammar.after(self.answer)


class Sampler:
    """Sampler of the next token of each sequence.

    The order is that of transformers' generate: penalties and bans, grammar, temperature, top-k, top-p, min-p, draw. A
    draw takes one uniform number from the sequence's own generator (inverse transform sampling), so that a seed gives
    the same tokens in any batch.
    """

    def __init__(self, end_ids: abc.Sequence[int], likeliest: Callable[[torch.Tensor], list[int]] = likeliest):
        """`likeliest`: see ModelRunner."""
        self.end_ids = tuple(end_ids)
        self._likeliest = likeliest

    def __call__(self, logits: torch.Tensor, positions: abc.Sequence[Position]) -> list[Sampled | RequestError]:
        """Sample one result for each position. `logits`: [positions, vocabulary], any float type; they are not changed.

        Most sequences are purely greedy and cost only the one argmax. Logits are copied only for sequences with other
        parameters, or with a grammar that does not allow the likeliest token. Raises the RequestError of a sequence
        whose grammar cannot go on. No random number is drawn before that, so each sequence can be sampled again alone.
        """
        tokens = self._likeliest(logits)
        matchers = [at.matcher for at in positions]
        special = [
            i
            for i, (at, token, matcher) in enumerate(zip(positions, tokens, matchers, strict=True))
            if token != BROKEN and not self._takes(at, matcher, token)
        ]
        if special:
            asked = logits[special].float()
            chosen = self._choose(asked, [positions[i] for i in special], [matchers[i] for i in special])
            for i, token in zip(special, chosen, strict=True):
                tokens[i] = token
        return [_result(at, token, logits, i) for i, (at, token) in enumerate(zip(positions, tokens, strict=True))]

    def _choose(
        self, logits: torch.Tensor, positions: abc.Sequence[Position], matchers: abc.Sequence[Matcher | None]
    ) -> list[int]:
        """Return a token id for each position. `logits`: [positions, vocabulary] in fp32; they are changed."""
        self._penalise(logits, positions)
        tokens = _argmax(logits)
        drawn = [i for i, at in enumerate(positions) if at.params.do_sample]
        for i, matcher in enumerate(matchers):
            if matcher is not None and (i in drawn or not matcher.allows(int(tokens[i]))):
                tokens[i] = _forbid(logits[i], matcher.mask())
        if drawn:
            tokens[drawn] = self._draw(logits[drawn], [positions[i].sequence for i in drawn])
        return tokens.tolist()

    def _penalise(self, logits: torch.Tensor, positions: abc.Sequence[Position]) -> None:
        """Apply penalties, biases and bans in place. `logits`: [positions, vocabulary]."""
        seen, factors = _Cells(), []
        added, terms = _Cells(), []
        banned = _Cells()
        for i, at in enumerate(positions):
            params = at.params
            if params.repetition_penalty != 1.0:
                factors += [params.repetition_penalty] * seen.add(i, set(at.token_ids))
            if params.presence_penalty or params.frequency_penalty:
                counts = Counter(at.answer)
                added.add(i, counts)
                terms += [-params.presence_penalty - params.frequency_penalty * times for times in counts.values()]
            added.add(i, params.logit_bias)
            terms += params.logit_bias.values()
            if params.no_repeat_ngram_size:
                banned.add(i, _repeats(at.token_ids, params.no_repeat_ngram_size))
            if at.sequence.answered + len(at.accepted) < params.min_new_tokens:
                banned.add(i, (*self.end_ids, *params.stop_token_ids))
        if seen.tokens:
            where, factor = seen.index(logits), torch.tensor(factors, device=logits.device)
            values = logits[where]
            logits[where] = torch.where(values > 0, values / factor, values * factor)
        if added.tokens:
            logits.index_put_(added.index(logits), torch.tensor(terms, device=logits.device), accumulate=True)
        if banned.tokens:
            logits[banned.index(logits)] = -torch.inf

    def _draw(self, logits: torch.Tensor, rows: abc.Sequence[Sequence]) -> torch.Tensor:
        """Draw a token id for each row: [rows]. `logits`: [rows, vocabulary]; all but one of a row may be -inf.

        The draw of a row depends only on its own parameters and logits, not on the other rows.
        """
        params = [row.request.sampling for row in rows]
        logits = logits / _column([p.temperature for p in params], logits)
        uniform = torch.tensor([row.random.random() for row in rows], dtype=torch.float64, device=logits.device)
        tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        left = list(range(len(rows)))
        cut = [i for i in left if params[i].top_k or params[i].top_p < 1 or params[i].min_p]
        if cut:
            chosen = self._draw_of_likeliest(logits[cut], [params[i] for i in cut], uniform[cut])
            done = (chosen >= 0).tolist()
            tokens[cut] = chosen
            left = [i for i in left if i not in cut or not done[cut.index(i)]]
            if wide := [i for i in left if i in cut]:  # a flat distribution: all of it must be sorted
                ordered, order = logits[wide].sort(-1, descending=True)
                logits[wide] = logits[wide].scatter(-1, order, _truncate(ordered, [params[i] for i in wide]))
        if left:
            weights = (logits[left] - logits[left].amax(-1, keepdim=True)).exp()
            tokens[left] = _pick(weights, uniform[left])
        return tokens

    @staticmethod
    def _draw_of_likeliest(
        logits: torch.Tensor, params: abc.Sequence[SamplingParams], uniform: torch.Tensor
    ) -> torch.Tensor:
        """Draw a token id for each row whose top-k, top-p and min-p keep only its CANDIDATES likeliest; else -1."""
        count = min(CANDIDATES, logits.shape[-1])
        values, indices = logits.topk(count)
        top_k = [p.top_k if 0 < p.top_k < count else count for p in params]
        by_k = torch.tensor([k < count for k in top_k], device=logits.device)
        # With top-k, probabilities are relative to the k likeliest tokens, else to all tokens.
        first_k = values.masked_fill(torch.arange(count, device=logits.device) >= _column(top_k, values), -torch.inf)
        total = torch.where(by_k, first_k.logsumexp(-1), logits.logsumexp(-1)).unsqueeze(-1)
        probability = (first_k - total).exp()
        before = probability.cumsum(-1) - probability
        top_p, floor = _column([p.top_p for p in params], values), _column([p.min_p for p in params], values)
        kept = (before < top_p) & (probability >= floor * probability[:, :1])
        kept[:, 0] = True
        covered = by_k | ~kept[:, -1] | (count == logits.shape[-1])
        # Draws are always in the vocabulary's order.
        indices, order = indices.sort(-1)
        weights = ((first_k - first_k[:, :1]).exp() * kept).gather(-1, order)
        chosen = indices.gather(-1, _pick(weights, uniform).unsqueeze(-1)).squeeze(-1)
        return torch.where(covered, chosen, -1)

    def _takes(self, at: Position, matcher: Matcher | None, likeliest: int) -> bool:
        """Return True when the likeliest token of the unchanged logits is the result."""
        params = at.params
        if not params.greedy or (matcher is not None and not matcher.allows(likeliest)):
            return False
        if at.sequence.answered + len(at.accepted) >= params.min_new_tokens:
            return True
        return likeliest not in self.end_ids and likeliest not in params.stop_token_ids


class _Cells:
    """Cells of a matrix [rows, vocabulary], collected row by row so that one operation changes them all."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []

    def add(self, row: int, tokens: Iterable[int]) -> int:
        """Add cells of one row; returns their number."""
        before = len(self.tokens)
        self.tokens += tokens
        self.rows += [row] * (len(self.tokens) - before)
        return len(self.tokens) - before

    def index(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cells as an index of `like`."""
        return torch.tensor(self.rows, device=like.device), torch.tensor(self.tokens, device=like.device)


def _forbid(logits: torch.Tensor, allowed: torch.Tensor) -> int:
    """Ban in place the tokens that a grammar forbids; returns the likeliest one left. `logits`: [vocabulary].

    `allowed`: bool, [vocabulary of the tokenizer], which may be smaller or larger.
    """
    known = logits[: len(allowed)]
    known.masked_fill_(~allowed[: len(known)].to(logits.device), -torch.inf)
    logits[len(allowed) :] = -torch.inf
    likeliest = int(_argmax(logits))
    if logits[likeliest] == -torch.inf:
        raise InternalError("of the tokens that the grammar allows the model gives none any probability")
    return likeliest


def _truncate(logits: torch.Tensor, params: abc.Sequence[SamplingParams]) -> torch.Tensor:
    """Apply top-k, then top-p, then min-p. The likeliest token stays. `logits`: [rows, vocabulary], descending."""
    vocabulary = logits.shape[-1]
    rank = torch.arange(vocabulary, device=logits.device)
    top_k = _column([p.top_k or vocabulary for p in params], logits)
    logits = logits.masked_fill(rank >= top_k, -torch.inf)
    probability = logits.softmax(-1)
    before = probability.cumsum(-1) - probability
    logits = logits.masked_fill((before >= _column([p.top_p for p in params], logits)) & (rank > 0), -torch.inf)
    floor = _column([p.min_p for p in params], logits) * probability[:, :1]
    return logits.masked_fill(probability < floor, -torch.inf)


def _column(values: abc.Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Return values as [rows, 1], with the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _repeats(token_ids: abc.Sequence[int], size: int) -> list[int]:
    """Return the tokens that would complete an n-gram of `size` tokens that `token_ids` already contains."""
    end = token_ids[len(token_ids) - size + 1 :]
    return [token_ids[i + size - 1] for i in range(len(token_ids) - size + 1) if token_ids[i : i + size - 1] == end]


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the argmax of the last dimension: [rows], or a number. numpy takes a sixth of torch's time on a CPU."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.as_tensor(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the first index of each row whose cumulated weight passes `uniform` times the row's sum: [rows].

    `weights`: [rows, n]. The search goes first over blocks of weights, then within one block, so that few sums are
    cumulated.
    """
    rows = torch.arange(len(weights), device=weights.device)
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    mass = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = uniform * mass[:, -1]
    block = torch.searchsorted(mass, wanted.unsqueeze(-1), right=True).squeeze(-1).clamp(max=mass.shape[-1] - 1)
    inside = blocks[rows, block].double()
    within = wanted - (mass[rows, block] - inside.sum(-1))
    index = torch.searchsorted(inside.cumsum(-1), within.unsqueeze(-1), right=True).squeeze(-1)
    # Last index with a weight above 0: sums in another order may round to a little less than `within`.
    last = BLOCK - 1 - (inside.flip(-1) > 0).int().argmax(-1)
    return block * BLOCK + index.minimum(last)


def _result(at: Position, token: int, logits: torch.Tensor, i: int) -> Sampled | RequestError:
    """Return the token chosen at a position, whose logits are `logits[i]`, or the error that ends its sequence."""
    if token == BROKEN:
        return InternalError("the model gave NaN for its logits: try another precision (bf16 or fp32)")
    count = at.params.logprobs
    return Sampled(token, None if count is None else _logprob(logits[i], token, count))


def _logprob(logits: torch.Tensor, token_id: int, count: int) -> TokenLogprob:
    """Return the model's own log-probabilities of the token and the `count` likeliest. `logits`: [vocabulary]."""
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(count, len(logprobs)))
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), likeliest)
