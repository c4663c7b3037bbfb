"""Plots of a benchmark, as PNG: latency and throughput against load, histograms, timelines. Needs matplotlib."""

import importlib.util
from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from run_gpt.bench.load import Run
from run_gpt.bench.results import Results
from run_gpt.bench.summary import Summary, values
from run_gpt.errors import SetupError

TITLES = {
    "latency": "Latency against load",
    "throughput": "Throughput against load",
    "histogram": "Histograms",
    "timeline": "Timelines",
}
_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}
_PERCENTILES = {"p50": "tab:blue", "p90": "tab:orange", "p99": "tab:red"}


def check() -> None:
    """Raise SetupError if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SetupError("plots need matplotlib: pip install 'rungpt[bench]', or leave out --html and --png")


def draw(results: Results) -> dict[str, bytes]:
    """Draw all plots; returns the PNG of each by its name. Raises SetupError if matplotlib is missing."""
    check()
    runs, summaries = results.ordered, results.summaries
    return {
        "latency": _latency(summaries, results.limits),
        "throughput": _throughput(summaries),
        "histogram": _histograms(runs),
        "timeline": _timelines(runs),
    }


def write(drawn: dict[str, bytes], folder: Path) -> None:
    """Create the folder and write each plot to a file in it. Raises SetupError if this fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in drawn.items():
            (folder / f"{name}.png").write_bytes(png)
    except OSError as error:
        raise SetupError(f"{folder}: {error.strerror}") from None


def _figure(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """Return a new figure, without a window and without matplotlib's global state, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _against_load(axis: Any, summaries: Sequence[Summary], label: str, colour: str, heights: Sequence[Any]) -> None:
    """Draw one line over the closed loops and one over the open loops, since the two have no common order.

    Whole answers have separate, dashed lines.
    """
    for kind, streamed in product(("closed", "open"), (True, False)):
        wanted = [summary.level.kind == kind and summary.level.streamed == streamed for summary in summaries]
        at = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        shown = [np.nan if heights[i] is None else heights[i] for i in at]
        style = "o-" if streamed else "o--"
        axis.plot(at, shown, style, color=colour, label=label if at and at[0] == 0 else None)


def _finish(axis: Any, summaries: Sequence[Summary]) -> None:
    names = [str(summary.level).replace("concurrency ", "c ") for summary in summaries]
    axis.set_xticks(range(len(summaries)), names, rotation=30)
    axis.legend()
    _from_zero(axis)


def _from_zero(axis: Any) -> None:
    high = axis.dataLim.y1
    axis.set_ylim(0, high * 1.08 if np.isfinite(high) and high > 0 else 1)


def _latency(summaries: Sequence[Summary], limits: dict[str, float]) -> bytes:
    figure, axes = _figure(1, len(_NAMES), 3.6)
    for axis, (name, title) in zip(axes.flat, _NAMES.items(), strict=True):
        for percentile, colour in _PERCENTILES.items():
            heights = [getattr(s.latencies[name], percentile, None) for s in summaries]
            _against_load(axis, summaries, percentile, colour, heights)
        if name in limits:
            axis.axhline(limits[name], color="grey", linestyle="--", label="limit")
        axis.set_title(f"{title}, ms")
        _finish(axis, summaries)
    return _png(figure)


def _throughput(summaries: Sequence[Summary]) -> bytes:
    figure, axes = _figure(1, 2, 3.6)
    tokens, requests = axes.flat
    _against_load(tokens, summaries, "output", "tab:blue", [s.output_tokens_per_second for s in summaries])
    _against_load(tokens, summaries, "with prompts", "tab:orange", [s.total_tokens_per_second for s in summaries])
    tokens.set_title("tokens/s")
    _against_load(requests, summaries, "answered", "tab:blue", [s.requests_per_second for s in summaries])
    if any(s.goodput is not None for s in summaries):
        _against_load(requests, summaries, "goodput", "tab:green", [s.goodput for s in summaries])
    requests.set_title("requests/s")
    for axis in (tokens, requests):
        _finish(axis, summaries)
    return _png(figure)


def _histograms(runs: Sequence[Run]) -> bytes:
    names = {"ttft": "TTFT", "itl": "ITL", "e2e": "E2E"}
    figure, axes = _figure(len(runs), len(names), 2.4 * len(runs) + 0.6)
    for row, run in zip(axes, runs, strict=True):
        for axis, (name, title) in zip(row, names.items(), strict=True):
            axis.hist(np.asarray([v for one in values(run.samples, name) for v in one]) * 1e3, bins=40)
            axis.set_title(f"{title}, ms, {run.level}")
    return _png(figure)


def _timelines(runs: Sequence[Run]) -> bytes:
    figure, axes = _figure(len(runs), 2, 2.4 * len(runs) + 0.6)
    for (flight, rate), run in zip(axes, runs, strict=True):
        times, counts = in_flight(run)
        flight.step(times, counts, where="post")
        flight.set_title(f"requests in flight, {run.level}")
        events = [at for sample in run.samples for at in sample.events]
        end = max([1.0, *(sample.end for sample in run.samples)])
        bins = np.linspace(0, end, min(120, max(10, int(end * 2))) + 1)
        per_bin, _ = np.histogram(events, bins)
        rate.stairs(per_bin / np.diff(bins), bins)
        rate.set_title(f"events/s, {run.level}")
        for axis in (flight, rate):
            axis.set_xlabel("s")
            _from_zero(axis)
    return _png(figure)


def in_flight(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the times at which requests began or ended, and the number of requests in flight after each."""
    times = np.asarray([s.start for s in run.samples] + [s.end for s in run.samples])
    steps = np.repeat([1, -1], len(run.samples))
    order = np.lexsort((steps, times))
    return times[order], np.cumsum(steps[order])
