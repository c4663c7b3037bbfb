"""Owns the arithmetic on two readings of counters and histograms: pure functions that follow PromQL's definitions."""

import math
from collections.abc import Callable, Iterable, Mapping

Labels = frozenset[tuple[str, str]]
"""Names and values of the labels of a series."""
Series = Mapping[Labels, float]
"""Values of one metric at one moment, by labels."""


def label(labels: Labels, name: str) -> str:
    """Return the value of a label; "" if it is missing, as in PromQL."""
    return next((value for key, value in labels if key == name), "")


def increases(
    before: Series, after: Series, known: Callable[[Labels], bool] = lambda labels: True
) -> dict[Labels, float]:
    """Return the increase of each counter. A counter that fell was reset to 0, so its increase is its present value.

    A new series counts from 0 if its owner was `known` before (for example the first error of a running replica).
    Otherwise the time of its increase is unknown, and its increase is 0.
    """
    risen = {}
    for labels, value in after.items():
        if (start := before.get(labels)) is None:
            start = 0.0 if known(labels) else value
        risen[labels] = value - start if value >= start else value
    return risen


def fell(before: Series, after: Series) -> list[Labels]:
    """Return the labels of counters that are lower than before: their process was restarted."""
    return [labels for labels, value in after.items() if value < before.get(labels, 0.0)]


def summed(series: Series, *names: str) -> dict[tuple[str, ...], float]:
    """Return the sums of the series, grouped by the values of the labels `names`: PromQL's `sum by (names)`."""
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in series.items():
        group = tuple(label(labels, name) for name in names)
        sums[group] = sums.get(group, 0.0) + value
    return sums


def quantile(q: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """Compute PromQL's `histogram_quantile` for 0 < q <= 1; None where PromQL gives NaN (no observation).

    `buckets` has the upper bound and cumulative count of each bucket; the last bound is infinite. Observations count as
    spread evenly within a bucket. The lowest bucket begins at 0 if its bound is positive. A quantile beyond the last
    finite bound is returned as that bound.
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
    """Return the bounds in order, with counts that never fall: replicas are not read at the same moment."""
    bounds: list[float] = []
    counts: list[float] = []
    for bound, count in sorted(buckets):
        bounds.append(bound)
        counts.append(max(count, counts[-1] if counts else 0.0))
    return bounds, counts
