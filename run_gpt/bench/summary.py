"""Figures of a load, computed from its samples: latencies, throughput, goodput and failures; and their formulas."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from run_gpt.bench.load import Level, Run
from run_gpt.bench.sample import Sample
from run_gpt.errors import SetupError

METRICS = ("ttft", "tpot", "itl", "e2e")
LIMITED = ("ttft", "tpot", "e2e")
_LAG_MS, _CPU_SHARE = 10.0, 0.8

FORMULAS = """\
Times are taken when the client reads an event from its socket; of answers that came whole only, in milliseconds.
TTFT = time of the first event with output - time of sending; at a given rate, - time at which it was due
TPOT = (time of the last event - time of the first event with output) / (output tokens - 1), for 2 tokens or more
ITL  = time between two events with output, all gaps of all answers; an event may have several tokens (tokens/event)
E2E  = time at which the answer was complete - time of sending (or at which it was due)
tokens: the server's `usage`; where it gives none, events are counted instead, and the table says so
tokens/event = output tokens / events with output;  events/answer = events with output / whole answers
reused = cached prompt tokens / prompt tokens, by `usage`
An answer that was requested whole has no events: neither these two, nor TTFT, TPOT and ITL.
CPU, ms/token = processor time during the load / output tokens: of this client, and of each process of a server on the
same machine (by /proc, to a hundredth of a second)
seconds = end of the last answer - time of sending the first request, warm-up left out
req/s = whole answers / seconds;  output tok/s = their output tokens / seconds;  total tok/s = with prompt tokens
goodput = whole answers within every limit of --goodput / seconds; an answer without a TPOT keeps its limit
pQ of n sorted values = the value at position (n - 1) * Q / 100, counted from 0, linear between neighbours (NumPy's)"""


@dataclass(frozen=True)
class Stats:
    """Figures of one latency, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self | None:
        """Compute the figures of values in seconds; None without values."""
        if not len(seconds):
            return None
        values = np.asarray(seconds) * 1e3
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        return cls(len(values), *(float(v) for v in (values.mean(), p50, p90, p99, values.max())))


@dataclass(frozen=True)
class Summary:
    """The figures of one load."""

    level: Level
    seconds: float
    ok: int
    failures: dict[str, int]
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float | None
    """Output and prompt tokens per second; None if the server gave no usage."""
    goodput: float | None
    """Answers within the limits per second; None if no limits were given."""
    counted_by: str
    """Source of the token counts: `usage`, or `events` if an answer came without usage."""
    tokens_per_event: float | None
    events_per_answer: float | None
    """Events with output per answer; None for whole answers, like `tokens_per_event`."""
    prompt_tokens: float | None
    """Mean prompt tokens of a request; None if the server gave no usage."""
    output_tokens: float
    reused: float | None
    latencies: dict[str, Stats | None]
    cpu_share: float
    """Processor time of the client itself, as a share of one core."""
    client_cpu_ms_per_token: float | None
    server_cpu: dict[str, float]
    """Processor milliseconds per token of each server process, by its name; empty if they are not visible."""
    lag_p99_ms: float
    lag_max_ms: float

    @property
    def server_cpu_ms_per_token(self) -> float | None:
        """Processor milliseconds per token of all server processes; None if they are not visible."""
        return sum(self.server_cpu.values()) if self.server_cpu else None

    def to_dict(self) -> dict[str, Any]:
        """Convert the summary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Restore a summary from its JSON. Raises TypeError or LookupError for other JSON."""
        latencies = {name: stats and Stats(**stats) for name, stats in data["latencies"].items()}
        return cls(**{**data, "level": Level(**data["level"]), "latencies": latencies})

    def warnings(self) -> list[str]:
        """Return the reasons why these figures are less reliable than they seem, one line each."""
        found = []
        if self.lag_p99_ms > _LAG_MS or self.cpu_share > _CPU_SHARE:
            cost = self.client_cpu_ms_per_token
            per_token = "" if cost is None else f", {cost:.3f} ms a token"
            found.append(
                f"{self.level}: the client itself was late by {self.lag_p99_ms:.0f} ms (p99; at most "
                f"{self.lag_max_ms:.0f}) and took {self.cpu_share:.0%} of a core{per_token}: latencies are too long by "
                "as much; give it a core of its own, or less load"
            )
        if self.counted_by == "events" and self.ok:
            what = "the numbers of tokens are those of events" if self.level.streamed else "tokens are not known"
            found.append(f"{self.level}: the server gave no usage: {what}")
        if not self.ok:
            found.append(f"{self.level}: no request was answered")
        return found


def parse_goodput(text: str | None) -> dict[str, float]:
    """Parse limits in milliseconds, such as `ttft:1000 tpot:50`. Raises SetupError."""
    limits: dict[str, float] = {}
    for part in re.split(r"[\s,]+", (text or "").strip()):
        if not part:
            continue
        name, _, value = part.partition(":")
        if name not in LIMITED or not re.fullmatch(r"\d+(\.\d+)?", value) or name in limits:
            raise SetupError(f"--goodput {part}: write NAME:MS once for each of {', '.join(LIMITED)}, as in ttft:1000")
        limits[name] = float(value)
    return limits


def within(sample: Sample, limits: dict[str, float]) -> bool:
    """Return True for a complete answer that keeps every limit (milliseconds)."""
    return sample.ok and all((getattr(sample, name) or 0.0) * 1e3 <= limit for name, limit in limits.items())


def values(samples: Iterable[Sample], metric: str) -> list[list[float]]:
    """Return the values of a latency for each complete answer, in seconds: all gaps for ITL, else one value or none."""
    found = [getattr(sample, metric) for sample in samples if sample.ok]
    return [value if isinstance(value, list) else [] if value is None else [value] for value in found]


def summarise(run: Run, limits: dict[str, float]) -> Summary:
    """Compute the figures of a load by FORMULAS."""
    good = [sample for sample in run.samples if sample.ok]
    seconds = run.seconds or float("inf")
    output, events = sum(sample.tokens for sample in good), sum(len(sample.events) for sample in good)
    by_usage = all(sample.output_tokens is not None for sample in good)
    prompts = sum(sample.prompt_tokens or 0 for sample in good) if by_usage else None
    cached = [sample.cached_tokens for sample in good if sample.cached_tokens is not None]
    lag = np.asarray(run.lag or [0.0]) * 1e3
    return Summary(
        level=run.level,
        seconds=run.seconds,
        ok=len(good),
        failures=dict(Counter(sample.failure for sample in run.samples if sample.failure is not None)),
        requests_per_second=len(good) / seconds,
        output_tokens_per_second=output / seconds,
        total_tokens_per_second=None if prompts is None else (output + prompts) / seconds,
        goodput=sum(within(sample, limits) for sample in good) / seconds if limits else None,
        counted_by="usage" if by_usage else "events",
        tokens_per_event=output / events if events and by_usage else None,
        events_per_answer=events / len(good) if events else None,
        prompt_tokens=prompts / len(good) if prompts is not None and good else None,
        output_tokens=output / len(good) if good else 0.0,
        reused=sum(cached) / prompts if prompts and len(cached) == len(good) else None,
        latencies={name: Stats.of([v for one in values(good, name) for v in one]) for name in METRICS},
        cpu_share=run.cpu_seconds / seconds,
        client_cpu_ms_per_token=run.cpu_seconds / output * 1e3 if output else None,
        server_cpu={name: used / output * 1e3 for name, used in run.server_seconds.items()} if output else {},
        lag_p99_ms=float(np.percentile(lag, 99)),
        lag_max_ms=float(lag.max()),
    )
