"""Model the time of an engine step as a sum of a few terms: the model, its fit, and its errors."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, Self

import numpy as np

FEW_ROWS, MANY_ROWS = 4, 16
"""Bounds where a sequence's price changes: few sequences share the time to read the weights, many fill the kernels'
tiles."""


@dataclass(frozen=True)
class Step:
    """Content of one step, and its time."""

    rows: int
    """Number of sequences past their prompt; each gave a token."""
    row_context: int
    """Tokens that these sequences had in the cache, together."""
    prompt_tokens: int
    """Prompt tokens."""
    prompt_pairs: int
    """Sum of the tokens before each prompt token."""
    seconds: float = 0.0


@dataclass(frozen=True)
class StepModel:
    """Seconds of a step: a constant and a price for each part of it, none of them negative."""

    base: float
    """Price of every step."""
    few: float
    """Price of each of the first FEW_ROWS sequences."""
    row: float
    """Price of each further sequence, up to MANY_ROWS."""
    many: float
    """Price of each sequence beyond MANY_ROWS."""
    context: float
    """Price of each cached token of a sequence that gives a token."""
    prompt: float
    """Price of each prompt token."""
    pair: float
    """Price of each pair of a prompt token and a token before it."""

    def seconds(self, rows: int, row_context: int, prompt_tokens: int, prompt_pairs: int) -> float:
        """Return the time of a step; the parameters are those of Step."""
        few = rows if rows < FEW_ROWS else FEW_ROWS
        many = rows - MANY_ROWS if rows > MANY_ROWS else 0
        return (
            self.base
            + self.few * few
            + self.row * (rows - few - many)
            + self.many * many
            + self.context * row_context
            + self.prompt * prompt_tokens
            + self.pair * prompt_pairs
        )

    def prefill(self, tokens: int, step_tokens: int, cached: int = 0) -> float:
        """Return the seconds until the first token of a prompt alone in a replica, with `cached` tokens reused."""
        seconds, start = 0.0, cached
        while start < tokens:
            part = min(step_tokens, tokens - start)
            seconds += self.seconds(0, 0, part, pairs(start, part))
            start += part
        return seconds

    def slower(self, factor: float) -> "StepModel":
        """Return the model with each price times `factor`."""
        return StepModel(*(factor * price for price in astuple(self)))

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Make a model from JSON. Raises SystemExit for a missing or unknown name."""
        names = {field.name for field in fields(cls)}
        if set(record) != names:
            raise SystemExit(f"a step model has {', '.join(sorted(names))}; this one has {', '.join(sorted(record))}")
        return cls(**record)


def pairs(start: int, tokens: int) -> int:
    """Count the pairs of each of `tokens` tokens from position `start` on with the tokens before it."""
    return tokens * start + tokens * (tokens - 1) // 2


@dataclass(frozen=True)
class FitError:
    """Error of the fitted model for steps of one kind."""

    kind: str
    steps: int
    bias: float
    """Modelled time of all these steps over measured, less 1."""
    median: float
    """Median of |modelled / measured - 1|."""
    p90: float


@dataclass(frozen=True)
class Fit:
    """A model and its errors for the steps to which it was fitted."""

    model: StepModel
    errors: tuple[FitError, ...]

    def record(self) -> dict[str, Any]:
        """Return the fit for JSON."""
        return {"model": asdict(self.model), "errors": [asdict(error) for error in self.errors]}


def fit(steps: Sequence[Step], rounds: int = 20) -> Fit:
    """Return the prices that fit these steps best by relative error; negative ones become 0.

    Least squares, weighted anew `rounds` times so that disturbed steps count little.
    """
    features = np.array([_features(step) for step in steps], dtype=float)
    seconds = np.array([step.seconds for step in steps])
    weights = np.ones(len(steps))
    prices = np.zeros(features.shape[1])
    for _ in range(rounds):
        prices = _nonnegative(features / seconds[:, None] * weights[:, None], weights)
        off = np.abs(features @ prices / seconds - 1)
        usual = max(float(np.median(off)), 1e-6)
        weights = np.sqrt(1 / np.maximum(1, off / (2 * usual)))  # Huber's
    model = StepModel(*(float(price) for price in prices))
    return Fit(model, tuple(_errors(model, steps)))


def _features(step: Step) -> tuple[float, ...]:
    few, many = min(step.rows, FEW_ROWS), max(0, step.rows - MANY_ROWS)
    return (1.0, few, step.rows - few - many, many, step.row_context, step.prompt_tokens, step.prompt_pairs)


def _nonnegative(features: Any, targets: Any) -> Any:
    """Solve least squares without negative prices: hold the most negative one at 0 and solve the rest again."""
    scale = np.abs(features).max(axis=0)
    used = [column for column in range(features.shape[1]) if scale[column] > 0]
    prices = np.zeros(features.shape[1])
    while used:
        solved = np.linalg.lstsq(features[:, used] / scale[used], targets, rcond=None)[0]
        if solved.min() >= 0:
            prices[used] = solved / scale[used]
            break
        used.pop(int(solved.argmin()))
    return prices


def kind(step: Step) -> str:
    """Name the kind of a step, by its content."""
    if step.prompt_tokens:
        return "prompts" if not step.rows else "prompts and rows"
    return f"{_bucket(step.rows)} rows" + (", long contexts" if step.row_context > 500 * step.rows else "")


def _bucket(rows: int) -> str:
    for least, most in ((1, 1), (2, 4), (5, 16), (17, 64)):
        if rows <= most:
            return f"{least}" if least == most else f"{least}-{most}"
    return "65 or more"


def _errors(model: StepModel, steps: Sequence[Step]) -> list[FitError]:
    errors = []
    for name in sorted({kind(step) for step in steps}):
        of_kind = [step for step in steps if kind(step) == name]
        modelled = [model.seconds(*astuple(step)[:4]) for step in of_kind]
        measured = [step.seconds for step in of_kind]
        off = [abs(a / b - 1) for a, b in zip(modelled, measured, strict=True)]
        bias = sum(modelled) / sum(measured) - 1
        errors.append(FitError(name, len(of_kind), bias, float(np.quantile(off, 0.5)), float(np.quantile(off, 0.9))))
    return errors
