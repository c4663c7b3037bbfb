"""Owns the arithmetic between two readings of counters and histograms: pure functions, by PromQL's definitions."""

import math
from collections.abc import Callable, Iterable, Mapping

Labels = frozenset[tuple[str, str]]
"""The names and values of a series' labels."""
Series = Mapping[Labels, float]
"""The values of one metric at one moment."""


def label(labels: Labels, name: str) -> str:
    """The value of one label; "" where there is none, as in PromQL."""
    return next((value for key, value in labels if key == name), "")


def increases(
    before: Series, after: Series, known: Callable[[Labels], bool] = lambda labels: True
) -> dict[Labels, float]:
    """By how much each counter rose. One that fell has begun again at 0, so it rose by what it is now.

    A series that was not there before counts from 0, if what it belongs to was `known` then: a first error, say. Else
    nothing is known of when it rose, and it counts nothing.
    """
    risen = {}
    for labels, value in after.items():
        if (start := before.get(labels)) is None:
            start = 0.0 if known(labels) else value
        risen[labels] = value - start if value >= start else value
    return risen


def fell(before: Series, after: Series) -> list[Labels]:
    """The counters that are lower than before: what holds them was started again."""
    return [labels for labels, value in after.items() if value < before.get(labels, 0.0)]


def summed(series: Series, *names: str) -> dict[tuple[str, ...], float]:
    """The sums over all labels but these, by the values of these: PromQL's `sum by (names)`."""
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in series.items():
        group = tuple(label(labels, name) for name in names)
        sums[group] = sums.get(group, 0.0) + value
    return sums


def quantile(q: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """PromQL's `histogram_quantile` for 0 < q <= 1; None where PromQL says NaN, so without an observation.

    `buckets`: upper bound and cumulative count of each; the last bound is infinite. Within a bucket observations count
    as spread evenly; the lowest begins at 0 if its bound is positive. What lies beyond the last finite bound is that.
    """
    bounds, counts = _monotonic(buckets)
    if len(bounds) < 2 or bounds[-1] != math.inf or counts[-1] == 0:
        return None
    rank = q * counts[-1]
    at = next((i for i, count in enumerate(counts[:-1]) if count >= rank), len(counts) - 1)
    if at == len(counts) - 1:
        return bounds[-2]
    if at == 0 and bounds[0] <= 0:
        return bounds[0]
    start, below = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    return start + (bounds[at] - start) * ((rank - below) / (counts[at] - below))


def _monotonic(buckets: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Bounds in order, and counts that never fall: replicas are not read at the same moment."""
    bounds: list[float] = []
    counts: list[float] = []
    for bound, count in sorted(buckets):
        bounds.append(bound)
        counts.append(max(count, counts[-1] if counts else 0.0))
    return bounds, counts
