"""Choice of tokens from logits by each sequence's parameters, in torch. The order is that of transformers' generate:
penalties and bans, temperature, top-k, top-p, min-p, draw. native/sampling.h does the same on a CPU.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F

from run_gpt.engine.plan import Position
from run_gpt.engine.request import SamplingParams

CANDIDATES = 256
"""Number of likeliest tokens that are tried before a whole vocabulary is sorted."""
BLOCK = 256
"""Number of weights that are summed before the sums are cumulated."""


def choose(logits: torch.Tensor, positions: Sequence[Position], end_ids: Sequence[int]) -> list[int]:
    """Return a token id for each position, as ModelRunner.choose."""
    rows = logits[[at.row for at in positions]].float()
    penalise(rows, positions, end_ids)
    tokens = argmax(rows)
    if drawn := [i for i, at in enumerate(positions) if at.params.do_sample]:
        tokens[drawn] = draw(rows[drawn], [positions[i] for i in drawn])
    return tokens.tolist()


def penalise(logits: torch.Tensor, positions: Sequence[Position], end_ids: Sequence[int]) -> None:
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
        banned.add(i, at.held_back(end_ids))
    if seen.tokens:
        where, factor = seen.index(logits), torch.tensor(factors, device=logits.device)
        values = logits[where]
        logits[where] = torch.where(values > 0, values / factor, values * factor)
    if added.tokens:
        logits.index_put_(added.index(logits), torch.tensor(terms, device=logits.device), accumulate=True)
    if banned.tokens:
        logits[banned.index(logits)] = -torch.inf


def draw(logits: torch.Tensor, positions: Sequence[Position]) -> torch.Tensor:
    """Draw a token id for each position: [positions].

    `logits`: [positions, vocabulary]; all but one of a row may be -inf. The draw of a row depends only on its own
    parameters and logits, not on the other rows.
    """
    params = [at.params for at in positions]
    logits = logits / _column([p.temperature for p in params], logits)
    uniform = torch.tensor([at.sequence.random.random() for at in positions], dtype=torch.float64, device=logits.device)
    tokens = torch.empty(len(positions), dtype=torch.int64, device=logits.device)
    left = list(range(len(positions)))
    cut = [i for i in left if params[i].top_k or params[i].top_p < 1 or params[i].min_p]
    if cut:
        chosen = _draw_of_likeliest(logits[cut], [params[i] for i in cut], uniform[cut])
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


def _draw_of_likeliest(logits: torch.Tensor, params: Sequence[SamplingParams], uniform: torch.Tensor) -> torch.Tensor:
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
    # With a larger top-k the total is not known here.
    larger_k = torch.tensor([count <= p.top_k < logits.shape[-1] for p in params], device=logits.device)
    covered = by_k | (~kept[:, -1] & ~larger_k) | (count == logits.shape[-1])
    # Draws are always in the vocabulary's order.
    indices, order = indices.sort(-1)
    weights = ((first_k - first_k[:, :1]).exp() * kept).gather(-1, order)
    chosen = indices.gather(-1, _pick(weights, uniform).unsqueeze(-1)).squeeze(-1)
    return torch.where(covered, chosen, -1)


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


def _truncate(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
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


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Return values as [rows, 1], with the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _repeats(token_ids: Sequence[int], size: int) -> list[int]:
    """Return the tokens that would complete an n-gram of `size` tokens that `token_ids` already contains."""
    end = token_ids[len(token_ids) - size + 1 :]
    return [token_ids[i + size - 1] for i in range(len(token_ids) - size + 1) if token_ids[i : i + size - 1] == end]


def argmax(logits: torch.Tensor) -> torch.Tensor:
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
