"""Perplexity of a text under a model, from the scores that it serves: sliding windows, echo and log-probabilities.

Perplexity is exp of the mean negative log-likelihood of a token (natural logarithm). The text's tokens are cut into
windows of `window` tokens, whose starts are `stride` tokens apart. A window scores the tokens that no earlier window
has scored, with all earlier tokens of the window as context. Each token counts once, except the first of the text,
which has no context. If windows do not overlap (stride = window), the first token of each is left out. A smaller stride
gives tokens more context and a lower perplexity, and takes longer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.local.model import Model

AT_ONCE = 4
"""Number of windows that are scored together."""


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `end` (exclusive) of a text; only the last `scored` tokens count."""

    start: int
    end: int
    scored: int


@dataclass(frozen=True)
class Score:
    """Score of a text."""

    tokens: int
    """Number of scored tokens."""
    loss: float
    """Sum of their negative log-likelihoods."""

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss."""
        return math.exp(self.loss / self.tokens)


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a text of `tokens` tokens, in order; `stride` is at most `window`."""
    done = 1
    for start in range(0, tokens, stride):
        end = min(start + window, tokens)
        if (scored := min(end - done, end - start - 1)) > 0:
            yield Window(start, end, scored)
        done = max(done, end)


def check_sizes(tokens: int, window: int, stride: int, context: int) -> None:
    """Raise SetupError for a text with fewer than 2 tokens, or an invalid window or stride."""
    if tokens < 2:
        raise SetupError(f"perplexity needs a text of two tokens at least, this one has {tokens}")
    if not 2 <= window <= context:
        raise SetupError(f"--window {window}: from 2 to the model's context, {context} tokens")
    if not 1 <= stride <= window:
        raise SetupError(f"--stride {stride}: from 1 to the window, {window} tokens")


async def score(model: "Model", ids: Sequence[int], window: int, stride: int) -> Score:
    """Score the token ids of a text. The sizes must have passed `check_sizes`."""
    cut = list(windows(len(ids), window, stride))
    losses: list[float] = []
    for first in range(0, len(cut), AT_ONCE):
        losses += await _losses(model, ids, cut[first : first + AT_ONCE])
    return Score(len(losses), math.fsum(losses))


async def _losses(model: "Model", ids: Sequence[int], cut: list[Window]) -> list[float]:
    """Return the negative log-likelihood of each token that these windows score."""
    prompts = [list(ids[window.start : window.end]) for window in cut]
    answers = await model.agenerate(prompts, max_new_tokens=0, echo=True, logprobs=0)
    losses = []
    for window, answer in zip(cut, answers, strict=True):
        logprobs = answer.choices[0].logprobs
        scores = [token.logprob for token in logprobs.content] if logprobs else []
        losses += [-cast("float", value) for value in scores[-window.scored :]]  # only the first is None
    return losses
