"""Figures as aligned Markdown tables, readable in a terminal and ready for a document."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from run_gpt.bench.results import Results
from run_gpt.bench.summary import METRICS, Summary

Row = Sequence[str]


def markdown(header: Row, rows: Sequence[Row]) -> str:
    """Format a Markdown table, with the first column aligned left and the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(_aligned(line, widths))} |" for line in lines)


def _aligned(line: Row, widths: Sequence[int]) -> Iterator[str]:
    yield line[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, but with all digits before the point; `-` for None."""
    if value is None:
        return "-"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def throughput(summaries: Sequence[Summary]) -> tuple[Row, list[Row]]:
    """Return header and rows of the requests and tokens of each load."""
    header = ["load", "ok", "failed", "req/s", "output tok/s", "total tok/s", "goodput"]
    header += ["prompt tok", "output tok", "reused", "tokens/event", "events/answer"]
    rows: list[Row] = []
    for s in summaries:
        events = "*" if s.counted_by == "events" else ""
        rates = (s.requests_per_second, s.output_tokens_per_second, s.total_tokens_per_second, s.goodput)
        cells = [number(rate) for rate in rates]
        cells[1] += events
        reused = "-" if s.reused is None else f"{s.reused:.0%}"
        sizes = (number(s.prompt_tokens), number(s.output_tokens) + events, reused)
        per_event = (number(s.tokens_per_event), number(s.events_per_answer))
        rows.append((str(s.level), str(s.ok), failures(s), *cells, *sizes, *per_event))
    return header, rows


def latencies(summaries: Sequence[Summary]) -> tuple[Row, list[Row]]:
    """Return header and rows of the latencies of each load, in milliseconds."""
    rows: list[Row] = []
    for summary in summaries:
        for name in METRICS:
            if (s := summary.latencies[name]) is not None:
                shown = [number(value) for value in (s.mean, s.p50, s.p90, s.p99, s.max)]
                rows.append((str(summary.level), f"{name.upper()}, ms", str(s.count), *shown))
    return ("load", "latency", "n", "mean", "p50", "p90", "p99", "max"), rows


def streaming(summaries: Sequence[Summary]) -> tuple[Row, list[Row]]:
    """Compare the throughput of streams with that of whole answers, for each load that was measured both ways."""
    whole = {summary.level: summary.output_tokens_per_second for summary in summaries}
    rows: list[Row] = []
    for summary in summaries:
        other = whole.get(replace(summary.level, streamed=False))
        if summary.level.streamed and other:
            rate = summary.output_tokens_per_second
            rows.append((str(summary.level), number(rate), number(other), f"{rate / other:.2f}"))
    return ("load", "streamed, output tok/s", "whole, output tok/s", "streamed / whole"), rows


def efforts(summaries: Sequence[Summary]) -> tuple[Row, list[Row]]:
    """Return header and rows of the processor time per token, of the client and of the server's processes."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary.server_cpu))
    rows: list[Row] = []
    for s in summaries:
        cells = (s.client_cpu_ms_per_token, s.server_cpu_ms_per_token, *(s.server_cpu.get(name) for name in names))
        rows.append((str(s.level), *map(number, cells)))
    return ("load", "CPU, ms/token: client", "server", *names), rows


def all_of(summaries: Sequence[Summary]) -> list[tuple[Row, list[Row]]]:
    """Return header and rows of every table that has rows."""
    made = [make(summaries) for make in (throughput, streaming, latencies, efforts)]
    return [(header, rows) for header, rows in made if rows]


def failures(summary: Summary) -> str:
    """Return the number of failures, with their kinds: `3 (2 timeout, 1 status 429)`."""
    total = sum(summary.failures.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.failures.items()))
    return f"{total} ({kinds})" if total else "0"


def text(summaries: Sequence[Summary]) -> str:
    """Format all tables; a star marks figures that were counted in events."""
    return "\n\n".join(markdown(*table) for table in all_of(summaries))


def document(results: Results, plots: Mapping[str, str]) -> str:
    """Return the results as Markdown for a document. `plots` has the title and the address of each plot."""
    parts = [text(results.summaries)]
    if results.saturation is not None:
        parts.append(f"Saturated at {results.saturation.level}: {results.saturation.reason}.")
    parts += [f"![{title}]({address})" for title, address in plots.items()]
    about, arguments = results.environment, {**results.arguments, **results.limits}
    where = f"{about['date'][:10]}, measured from {about['cpu']}, {about['cores']} cores; rungpt {about['rungpt']}"
    how = ", ".join(f"{name} {value}" for name, value in arguments.items() if value not in (None, False, {}, ""))
    return "\n\n".join([*parts, f"{where}, python {about['python']}. Arguments: {how}."])
