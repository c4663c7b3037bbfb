"""Sampling of tokens from logits, in one pass over all sequences. Each has its own parameters; none affects another."""

from collections.abc import Callable, Sequence

import torch

from run_gpt.engine.choice import argmax, choose, draw, penalise
from run_gpt.engine.grammar import Matcher
from run_gpt.engine.plan import Position, Sampled
from run_gpt.engine.request import TokenLogprob
from run_gpt.engine.runner import BROKEN, likeliest
from run_gpt.errors import InternalError, RequestError

Choose = Callable[[torch.Tensor, Sequence[Position], Sequence[int]], list[int]]
"""Function such as `choose`."""


class Sampler:
    """Sampler of the next token of each sequence.

    The order is that of transformers' generate: penalties and bans, grammar, temperature, top-k, top-p, min-p, draw. A
    draw takes one uniform number from the sequence's own generator (inverse transform sampling), so that a seed gives
    the same tokens in any batch.
    """

    def __init__(
        self,
        end_ids: Sequence[int],
        likeliest: Callable[[torch.Tensor], list[int]] = likeliest,
        choose: Choose = choose,
    ):
        """`likeliest`, `choose`: see ModelRunner."""
        self.end_ids = tuple(end_ids)
        self.likeliest = likeliest
        self._choose = choose

    def __call__(
        self, logits: torch.Tensor, positions: Sequence[Position], likeliest: Sequence[int]
    ) -> list[Sampled | RequestError]:
        """Sample one result for each position. `likeliest`: the likeliest token of each row of `logits`.

        `logits`: [rows, vocabulary], any float type; they are not changed. Most sequences are purely greedy and cost
        nothing more. Raises the RequestError of a sequence whose grammar cannot go on. No random number is drawn before
        that, so each sequence can be sampled again alone.
        """
        tokens, free, bound = [likeliest[at.row] for at in positions], list[int](), dict[int, Matcher]()
        for i, at in enumerate(positions):
            matcher = at.matcher
            if tokens[i] == BROKEN or self._takes(at, matcher, tokens[i]):
                continue
            if matcher is None:
                free.append(i)
            else:
                bound[i] = matcher
        if bound:
            chosen = self._follow(logits, [positions[i] for i in bound], [*bound.values()])
            for i, token in zip(bound, chosen, strict=True):
                tokens[i] = token
        if free:
            for i, token in zip(free, self._choose(logits, [positions[i] for i in free], self.end_ids), strict=True):
                tokens[i] = token
        return [_result(at, token, logits) for at, token in zip(positions, tokens, strict=True)]

    def _follow(self, logits: torch.Tensor, positions: Sequence[Position], matchers: Sequence[Matcher]) -> list[int]:
        """Return a token for each position, which its grammar allows."""
        rows = logits[[at.row for at in positions]].float()
        penalise(rows, positions, self.end_ids)
        tokens = argmax(rows)
        drawn = [i for i, at in enumerate(positions) if at.params.do_sample]
        for i, matcher in enumerate(matchers):
            if i in drawn or not matcher.allows(int(tokens[i])):
                tokens[i] = _forbid(rows[i], matcher.mask())
        if drawn:
            tokens[drawn] = draw(rows[drawn], [positions[i] for i in drawn])
        return tokens.tolist()

    def _takes(self, at: Position, matcher: Matcher | None, likeliest: int) -> bool:
        """Return True when the likeliest token of the unchanged logits is the result."""
        if not at.params.greedy or (matcher is not None and not matcher.allows(likeliest)):
            return False
        return likeliest not in at.held_back(self.end_ids)


def _forbid(logits: torch.Tensor, allowed: torch.Tensor) -> int:
    """Ban in place the tokens that a grammar forbids; returns the likeliest one left. `logits`: [vocabulary].

    `allowed`: bool, [vocabulary of the tokenizer], which may be smaller or larger.
    """
    known = logits[: len(allowed)]
    known.masked_fill_(~allowed[: len(known)].to(logits.device), -torch.inf)
    logits[len(allowed) :] = -torch.inf
    likeliest = int(argmax(logits))
    if logits[likeliest] == -torch.inf:
        raise InternalError("of the tokens that the grammar allows the model gives none any probability")
    return likeliest


def _result(at: Position, token: int, logits: torch.Tensor) -> Sampled | RequestError:
    """Return the token chosen at a position, or the error that ends its sequence."""
    if token == BROKEN:
        return InternalError("the model gave NaN for its logits: try another precision (bf16 or fp32)")
    count = at.params.logprobs
    return Sampled(token, None if count is None else _logprob(logits[at.row], token, count))


def _logprob(logits: torch.Tensor, token_id: int, count: int) -> TokenLogprob:
    """Return the model's own log-probabilities of the token and the `count` likeliest. `logits`: [vocabulary]."""
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(count, len(logprobs)))
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), likeliest)
