"""Comparison of two results: the ratio of the medians for each load, with its confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from run_gpt.bench.load import Level, Run
from run_gpt.bench.results import Results
from run_gpt.bench.summary import METRICS, summarise, values
from run_gpt.bench.tables import markdown, number
from run_gpt.errors import SetupError

RESAMPLES = 1000
SAME = ("prompt_words", "output_tokens", "dataset", "system_words", "turns", "exact_output", "extra_body")
"""Arguments that must be equal for two results to be of the same load."""

FORMULAS = f"""\
ratio = median of B / median of A: below 1, B is faster; of rates, above 1.
95 % interval: bootstrap of {RESAMPLES} resamples; whole requests are drawn, with all their gaps, from each file.
* marks a ratio whose interval does not contain 1. It says nothing of what changes between two runs: make several."""


@dataclass(frozen=True)
class Ratio:
    """Ratio B / A of one figure under one load. Rates of a whole run have no interval."""

    level: Level
    name: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None

    @property
    def ratio(self) -> float:
        """B / A."""
        return self.b / self.a if self.a else float("nan")

    @property
    def significant(self) -> bool:
        """True when the interval does not contain 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def common_levels(a: Results, b: Results) -> list[Level]:
    """Return the loads that both results have. Raises SetupError if their loads differ.

    Only two sweeps may have different loads, since they may have ended at different ones.
    """
    for name in SAME:
        left, right = a.arguments.get(name), b.arguments.get(name)
        if left != right:
            raise SetupError(f"the loads differ: {name.replace('_', '-')} is {left} in A, {right} in B")
    of_a, of_b = ([run.level for run in results.ordered] for results in (a, b))
    common = [level for level in of_a if level in of_b]
    if not common or (of_a != of_b and not (a.saturation and b.saturation)):
        shown = ["; ".join(map(str, levels)) for levels in (of_a, of_b)]
        raise SetupError(f"the loads differ: {shown[0]} in A, {shown[1]} in B")
    return common


def compare(a: Results, b: Results, seed: int = 0) -> list[Ratio]:
    """Compute the ratios of the figures that both results have. Raises SetupError as `common_levels` does."""
    ratios = []
    for level in common_levels(a, b):
        left, right = (next(run for run in results.runs if run.level == level) for results in (a, b))
        ratios += [found for name in METRICS if (found := _latency(name, left, right, seed))]
        sums = summarise(left, {}), summarise(right, {})
        if sums[0].counted_by == sums[1].counted_by:
            ratios.append(Ratio(level, "output tok/s", *(s.output_tokens_per_second for s in sums)))
        ratios.append(Ratio(level, "req/s", *(s.requests_per_second for s in sums)))
        effort = [cost for s in sums if (cost := s.server_cpu_ms_per_token) is not None]
        if len(effort) == len(sums):
            ratios.append(Ratio(level, "server CPU, ms/token", *effort))
    return ratios


def _latency(name: str, left: Run, right: Run, seed: int) -> Ratio | None:
    of_a, of_b = ([np.asarray(v) * 1e3 for v in values(run.samples, name) if v] for run in (left, right))
    if not of_a or not of_b:
        return None
    rng = np.random.default_rng([seed, METRICS.index(name)])
    ratios = medians(of_b, rng) / np.maximum(medians(of_a, rng), 1e-9)
    low, high = np.percentile(ratios, [2.5, 97.5])
    a, b = (float(np.median(np.concatenate(of))) for of in (of_a, of_b))
    return Ratio(left.level, f"{name.upper()} p50, ms", a, b, float(low), float(high))


def medians(requests: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return the medians of RESAMPLES bootstrap samples: as many requests as there are, drawn with replacement."""
    if all(len(one) == 1 for one in requests):
        singles = np.concatenate(requests)
        drawn = rng.integers(0, len(singles), (RESAMPLES, len(singles)))
        return np.asarray(np.median(singles[drawn], axis=1))
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, len(requests), len(requests))
        found[i] = np.median(np.concatenate([requests[j] for j in drawn]))
    return found


def table(ratios: Sequence[Ratio]) -> str:
    """Format the ratios as a Markdown table."""
    rows = []
    for r in ratios:
        interval = "-" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
        mark = " *" if r.significant else "  "
        rows.append((str(r.level), r.name, number(r.a), number(r.b), f"{r.ratio:.3f}{mark}", interval))
    return markdown(("load", "figure", "A", "B", "B / A", "95 % interval"), rows)
