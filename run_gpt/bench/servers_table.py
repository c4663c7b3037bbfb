"""Tables that compare several servers: throughput, the requested ratios, and the processor time of a token."""

from collections.abc import Callable, Iterator, Sequence
from operator import truediv
from statistics import median

from run_gpt.bench.load import Level
from run_gpt.bench.servers import NEW_TOKENS, PROMPT_WORDS, Measured
from run_gpt.bench.summary import Summary
from run_gpt.bench.tables import Row, markdown, number
from run_gpt.errors import SetupError

_SHOWN_MS = 0.005  # processes with less time per token are not shown
Pair = tuple[str, str]


def document(measured: Sequence[Measured], pairs: Sequence[Pair]) -> str:
    """Return all tables and the environment as Markdown. Raises SetupError for a pair that was not measured."""
    tables = [markdown(*rates(measured)), markdown(*ratios(measured, pairs)), markdown(*costs(measured))]
    return "\n\n".join([*tables, _about(measured)])


def default_pairs(measured: Sequence[Measured]) -> list[Pair]:
    """Pair the first server with each of the others."""
    return [(measured[0].name, other.name) for other in measured[1:]]


def rates(measured: Sequence[Measured]) -> tuple[Row, list[Row]]:
    """Return header and rows of the output tokens per second of each burst: median and best of the rounds."""
    streams = _streams(measured)
    rows: list[Row] = []
    for one in measured:
        for streamed in (True, False):
            found = [_rates(one, n, streamed) for n in streams]
            cells = [f"{number(median(some))} ({number(max(some))})" if some else "" for some in found]
            rows.append((f"{one.name}, {_way(streamed)}", *cells))
    return ("output tokens/s: median (best)", *(f"x{n:g}" for n in streams)), rows


def ratios(measured: Sequence[Measured], pairs: Sequence[Pair]) -> tuple[Row, list[Row]]:
    """Return header and rows of ratios: streams to whole answers of each server, and first to second server of a pair.

    A ratio is the median of the rounds' ratios, since both parts of a round were measured within seconds. If one server
    had more rounds than the other, it is the ratio of the medians.
    """
    streams = _streams(measured)
    by_name = {one.name: one for one in measured}
    for name in (name for pair in pairs for name in pair):
        if name not in by_name:
            raise SetupError(f"{name} was not measured: there are {', '.join(by_name)}")
    wanted = [(f"{one.name}: streamed / whole", (one, True), (one, False)) for one in measured]
    for first, second in pairs:
        for way in (True, False):
            wanted.append((f"{first} / {second}, {_way(way)}", (by_name[first], way), (by_name[second], way)))
    rows: list[Row] = []
    for label, (a, way), (b, other) in wanted:
        rows.append((label, *(_ratio(_rates(a, n, way), _rates(b, n, other)) for n in streams)))
    return ("ratio of tokens/s", *(f"x{n:g}" for n in streams)), rows


def costs(measured: Sequence[Measured]) -> tuple[Row, list[Row]]:
    """Return header and rows of TTFT, events and processor time of each burst, as medians of the rounds."""
    rows: list[Row] = []
    for one in measured:
        for level, rounds in one.rounds.items():
            cells = (
                _median(rounds, _ttft),
                _median(rounds, lambda s: s.events_per_answer),
                _median(rounds, lambda s: s.server_cpu_ms_per_token),
                _processes(rounds),
                _median(rounds, lambda s: s.client_cpu_ms_per_token),
            )
            rows.append((f"{one.name}, {_way(level.streamed)}, x{level.value:g}", *cells))
    header = ("", "TTFT p50, ms", "events/answer", "server CPU, ms/token", "of it", "client CPU, ms/token")
    return header, rows


def _processes(rounds: Sequence[Summary]) -> str:
    """List the processes with a visible share, the busiest first; return an empty text for a single process."""
    names = {name for summary in rounds for name in summary.server_cpu}
    shares = {name: median(summary.server_cpu.get(name, 0.0) for summary in rounds) for name in names}
    shown = sorted((name for name in names if shares[name] > _SHOWN_MS), key=lambda name: -shares[name])
    return ", ".join(f"{name} {number(shares[name])}" for name in shown) if len(names) > 1 else ""


def _ttft(summary: Summary) -> float | None:
    stats = summary.latencies["ttft"]
    return None if stats is None else stats.p50


def _median(rounds: Sequence[Summary], figure: Callable[[Summary], float | None]) -> str:
    values = [value for summary in rounds if (value := figure(summary)) is not None]
    return number(median(values)) if values else ""


def _rates(one: Measured, streams: float, streamed: bool) -> list[float]:
    return [s.output_tokens_per_second for s in one.rounds.get(Level("closed", streams, streamed), [])]


def _ratio(a: Sequence[float], b: Sequence[float]) -> str:
    if not (a and b):
        return ""
    ratio = median(map(truediv, a, b)) if len(a) == len(b) else median(a) / median(b)
    return f"{ratio:.2f}"


def _streams(measured: Sequence[Measured]) -> list[float]:
    return sorted({level.value for one in measured for level in one.rounds})


def _way(streamed: bool) -> str:
    return "streamed" if streamed else "whole"


def _about(measured: Sequence[Measured]) -> str:
    about = measured[0].environment
    return (
        f"{', '.join(_dates(measured))}; {about['cpu']}, {about['cores']} cores; rungpt {about['rungpt']}, python "
        f"{about['python']}. So many requests at once, each of {PROMPT_WORDS} words and {NEW_TOKENS} new tokens, "
        "greedy, the end of sequence held back; over loopback, client and server on the same cores. "
        "An engine in the client's own process has the CPU time of both."
    )


def _dates(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield the time of each measurement: those of the same hour can be compared, others hardly."""
    for one in measured:
        rounds = len(next(iter(one.rounds.values()), []))
        yield f"{one.name} {one.environment['date'][:16].replace('T', ' ')} UTC ({rounds} rounds)"
