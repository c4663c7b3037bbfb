"""Prometheus metrics of an engine. Each step updates histograms; everything else is read at collection time."""

from bisect import bisect_left
from collections import abc
from collections.abc import Iterator, Sized
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from run_gpt.engine.plan import Outcome, Sequence, StepPlan
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.scheduler import Scheduler
from run_gpt.errors import QueueFull
from run_gpt.process import logs

# Seconds. Latencies that a reader of the text notices are resolved to 5 ms, up to 100 ms.
_WAITS = (0.001, 0.0025, *(step / 200 for step in range(1, 21)), 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 60)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEPS = (0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)

HISTOGRAMS: dict[str, tuple[abc.Sequence[float], str]] = {
    "rungpt_time_to_first_token_seconds": (_WAITS, "From a sequence's arrival to its first token."),
    "rungpt_inter_token_latency_seconds": (
        _WAITS,
        "From a token to the next one of its sequence; tokens of one step share the step's time equally.",
    ),
    "rungpt_e2e_request_latency_seconds": (_LONG, "From a sequence's arrival to its end."),
    "rungpt_request_queue_time_seconds": (_LONG, "From a sequence's arrival to the first step that runs it."),
    "rungpt_request_prefill_time_seconds": (
        _LONG,
        "From the first step that runs a sequence to its first token, or to its end if it has none.",
    ),
    "rungpt_request_decode_time_seconds": (_LONG, "From a sequence's first token to its last."),
    "rungpt_step_time_seconds": (_STEPS, "Time of a step: plan, forward pass, sampling, commit."),
    "rungpt_step_batch_size": (_ROWS, "Sequences that a step runs, prompts and answers together."),
    "rungpt_request_prompt_tokens": (_TOKENS, "Tokens of the prompt of a sequence that ended well."),
    "rungpt_request_generation_tokens": (_TOKENS, "Tokens of the answer of a sequence that ended well, if it has any."),
}
"""Buckets and help text of each histogram."""


NEWEST = 0.1
"""Weight of the newest sequence in the mean time that sequences run."""


class Histogram:
    """Counts of a histogram.

    prometheus_client's own histogram takes about 1.2 us for each value, because it looks at every bucket and takes a
    lock. This one takes 0.2 us.
    """

    def __init__(self, buckets: abc.Sequence[float]):
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value `times` times."""
        self._counts[bisect_left(self._buckets, value)] += times
        self._sum += value * times

    def family(self, name: str, about: str) -> Metric:
        """Return the histogram as it is now."""
        bounds = [*map(floatToGoString, self._buckets), "+Inf"]
        cumulated = [(bound, float(count)) for bound, count in zip(bounds, accumulate(self._counts), strict=True)]
        return HistogramMetricFamily(name, about, buckets=cumulated, sum_value=self._sum)


class EngineMetrics(Collector):
    """Metrics of one engine: those that its scheduler holds, and those that `step` records.

    Sequences that end with an error are not counted in the histograms of whole sequences.
    """

    def __init__(self, scheduler: Scheduler, beams: Sized, lock: AbstractContextManager[Any]):
        """`beams`: beam searches that wait or run. `lock`: held during every change of the scheduler or `beams`."""
        self._scheduler, self._searches, self._lock = scheduler, beams, lock
        self._histograms = {name: Histogram(buckets) for name, (buckets, _) in HISTOGRAMS.items()}
        self._first, self._next, self._whole, self._queue, self._prefill, *rest = self._histograms.values()
        self._decode, self._step_time, self._step_rows, self._prompt, self._generated = rest
        self._finished = {"stop": 0, "length": 0}
        self._slot_seconds = 0.0
        """Time that a sequence holds its slot, the newest ones counted most."""
        self._prompt_tokens = 0
        self._beam_tokens = 0
        # Empty where there is no /proc. Containers have gauges of their own for the collector's other values.
        process = ProcessCollector("rungpt", registry=None).collect()
        self._process = [family for family in process if family.name == "rungpt_process_start_time_seconds"]

    def step(
        self, plan: StepPlan, outcomes: abc.Sequence[tuple[Sequence, Outcome]], started: float, ended: float
    ) -> None:
        """Record a committed step; the caller holds the lock. Times are on time.perf_counter's clock."""
        if plan.runs:
            self._step_time.add(ended - started)
            self._step_rows.add(len(plan.runs))
        for run in plan.runs:
            if run.sequence.times.started is None:
                self._begin(run.sequence, started)
        for sequence, outcome in outcomes:
            if not isinstance(outcome, TokenEvent):
                continue
            times, tokens = sequence.times, outcome.tokens
            if tokens and times.first is not None:
                self._next.add((ended - times.last) / tokens, tokens)
            elif tokens:
                times.first = ended
                self._first.add(ended - times.arrived)
                self._prefill.add(ended - (times.started or started))
            times.last = ended
            if outcome.finish_reason is not None:
                self._end(sequence, outcome.finish_reason)

    def _begin(self, sequence: Sequence, now: float) -> None:
        sequence.times.started = now
        self._queue.add(now - sequence.times.arrived)
        if not sequence.index:  # the others share its prompt
            self._prompt_tokens += len(sequence.request.prompt_ids)

    def seconds_until(self, ended: int) -> int:
        """Estimate the seconds until so many more sequences have ended, by the time that the last ones ran; 1 to 60."""
        return QueueFull.seconds(self._slot_seconds * ended / self._scheduler.max_running)

    def _end(self, sequence: Sequence, reason: str) -> None:
        times = sequence.times
        ran = times.last - (times.started or times.last)
        self._slot_seconds += (ran - self._slot_seconds) * NEWEST if self._slot_seconds else ran
        self._finished[reason] += 1
        self._whole.add(times.last - times.arrived)
        self._prompt.add(len(sequence.request.prompt_ids))
        if times.first is None:
            self._prefill.add(times.last - (times.started or times.last))
        else:
            self._decode.add(times.last - times.first)
            self._generated.add(sequence.answered)

    def beams(self, request: Request, events: abc.Sequence[TokenEvent], seconds: float) -> None:
        """Record a beam search that gave these events `seconds` after its request came; the caller holds the lock."""
        self._prompt_tokens += len(request.prompt_ids)
        for event in events:
            self._beam_tokens += event.tokens
            self._finished[event.finish_reason or "length"] += 1
            self._whole.add(seconds)
            self._prompt.add(len(request.prompt_ids))

    def collect(self) -> list[Metric]:
        """Return all metrics as they are now; see Collector."""
        with self._lock:
            histograms = [histogram.family(name, HISTOGRAMS[name][1]) for name, histogram in self._histograms.items()]
            return [*self._gauges(), *self._process, *self._counters(), *histograms]

    def _gauges(self) -> Iterator[Metric]:
        scheduler, slots, running = self._scheduler, self._scheduler.slots, len(self._scheduler.running)
        reserved, limit = sum(slots.cost(slot.reserved) for slot in slots.all), slots.max_tokens
        used = running / scheduler.max_running if limit is None else reserved / limit
        for name, value, about in (
            ("num_requests_running", running, "Sequences that run."),
            (
                "num_requests_waiting",
                len(scheduler.waiting) + len(self._searches),
                "Sequences that wait, and beam searches.",
            ),
            ("num_slots", scheduler.max_running, "Slots: most sequences that run together (--max-running)."),
            ("num_slots_used", running + len(slots.kept), "Slots that hold a sequence, running or kept for reuse."),
            (
                "kv_cache_usage_perc",
                used,
                "Share of the cache, 0 to 1, that is set aside for running sequences; without a limit, of the slots.",
            ),
            ("cache_tokens", slots.tokens, "Tokens for which cache is set aside, those kept for reuse included."),
            (
                "cache_tokens_limit",
                float("inf") if limit is None else limit,
                "Tokens that the cache may hold (--max-cache-tokens).",
            ),
        ):
            yield GaugeMetricFamily(f"rungpt_{name}", about, value=value)

    def _counters(self) -> Iterator[Metric]:
        counters = self._scheduler.counters
        for name, value, about in (
            ("prompt_tokens", self._prompt_tokens, "Tokens of prompts that began to run, reused ones included."),
            ("generation_tokens", counters.generated_tokens + self._beam_tokens, "Tokens of answers."),
            (
                "prefix_cache_queries",
                counters.prompt_tokens,
                "Prompt tokens that were looked up for reuse, once for each sequence.",
            ),
            ("prefix_cache_hits", counters.cached_tokens, "Prompt tokens that were reused and not run."),
            ("spec_decode_num_draft_tokens", counters.drafted_tokens, "Tokens that were drafted."),
            ("spec_decode_num_accepted_tokens", counters.accepted_tokens, "Drafted tokens that were right."),
            ("log_lines_dropped", logs.dropped_lines(), "Lines of this process's log that could not be written."),
        ):
            yield CounterMetricFamily(f"rungpt_{name}", about, value=value)
        finished = CounterMetricFamily(
            "rungpt_request_success", "Sequences that ended well.", labels=["finished_reason"]
        )
        for reason, count in self._finished.items():
            finished.add_metric([reason], count)
        yield finished
