"""Search for the load that saturates a server: double it until throughput stops rising, then bisect."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from run_gpt.bench.load import Level
from run_gpt.bench.summary import Summary

GAIN = 1.05
"""Least factor over the best earlier load that counts as a gain."""
KEPT = 0.9
"""Least share of the requests of a load that must be answered within the limits."""
REFINEMENTS = 2
MOST_LEVELS = 12

Measure = Callable[[Level], Awaitable[Summary]]


@dataclass(frozen=True)
class Saturation:
    """Load with the highest throughput (with limits: goodput), and the reason why no higher one was tried."""

    level: Level
    reason: str


def worth(summary: Summary) -> float:
    """Return the value that a sweep maximises: goodput if there are limits, else output tokens per second."""
    return summary.output_tokens_per_second if summary.goodput is None else summary.goodput


def breaks(summary: Summary) -> str | None:
    """Return the reason why a load is too high, independent of its throughput; None if it is not."""
    requests = summary.ok + sum(summary.failures.values())
    if summary.ok < KEPT * requests:
        return f"{requests - summary.ok} of {requests} requests failed at {summary.level}"
    if summary.goodput is not None and summary.goodput * summary.seconds < KEPT * requests:
        kept = round(summary.goodput * summary.seconds)
        return f"only {kept} of {requests} requests kept the limits at {summary.level}"
    return None


async def sweep(start: Level, most: float, measure: Measure) -> Saturation:
    """Measure from `start` to at most `most`: at most MOST_LEVELS levels, then REFINEMENTS between the last two.

    A single load without a gain may be chance, so the sweep ends after two in a row.
    """
    value, best, too_much, reason = start.value, None, None, f"after {MOST_LEVELS} loads"
    for _ in range(MOST_LEVELS):
        summary = await measure(replace(start, value=value))
        if why := breaks(summary):
            reason, too_much = why, too_much or value
            break
        if best is None or worth(summary) >= GAIN * worth(best):
            best, too_much = summary, None
        elif too_much is None:
            too_much = value
        else:
            reason = _brings_less(summary, best)
            break
        value *= 2
        if value > most:
            reason = f"{value:g} is more than the bounds of this run allow ({most:g})"
            reason = reason if too_much is None else f"{_brings_less(summary, best)}; {reason}"
            break
    if best is None:
        return Saturation(start, reason)
    return Saturation((await _between(best, too_much, measure)).level, reason)


def _brings_less(summary: Summary, best: Summary) -> str:
    unit = "output tokens/s" if summary.goodput is None else "good requests/s"
    return f"{summary.level} brings {worth(summary):.4g} {unit}, {best.level} {worth(best):.4g}"


async def _between(best: Summary, too_much: float | None, measure: Measure) -> Summary:
    """Bisect between a good load and one that is too high; returns the best."""
    for _ in range(REFINEMENTS if too_much is not None else 0):
        assert too_much is not None
        middle = (best.level.value + too_much) / 2
        if best.level.kind == "closed" and not middle.is_integer():
            break
        summary = await measure(replace(best.level, value=middle))
        if breaks(summary) or worth(summary) < GAIN * worth(best):
            too_much = middle
        else:
            best = summary
    return best
