"""Without these tests an engine's metrics could be wrong, or slow the engine down."""

import threading
import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from test_engine import ScriptedRunner, collect, decode

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.metrics import HISTOGRAMS, EngineMetrics, Histogram
from run_gpt.engine.plan import Sampled
from run_gpt.engine.request import Request
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.text import TextStream
from run_gpt.errors import InternalError

WHOLE = ("e2e_request_latency_seconds", "request_prompt_tokens")
WITH_TOKENS = ("time_to_first_token_seconds", "request_decode_time_seconds", "request_generation_tokens")


def samples(text):
    """Return the samples of a text, by name without `rungpt_` and values of labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = " ".join([sample.name.removeprefix("rungpt_"), *sample.labels.values()])
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def a_request(name, prompt=(1, 10), tokens=3, **more):
    return Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=tokens, **more)


class Driven:
    """Scheduler and its metrics, with steps and times set by a test."""

    def __init__(self, **options):
        options = {"max_running": 4, "max_waiting": 4, "max_step_tokens": 100, "end_ids": [0]} | options
        self.scheduler = Scheduler(
            new_text=lambda request: TextStream(decode, request.prompt_ids, request.stop), **options
        )
        self.metrics = EngineMetrics(self.scheduler, [], threading.Lock())

    def add(self, request, now):
        for row in self.scheduler.add(request):
            row.times.arrived = now

    def step(self, started, ended, *results):
        plan = self.scheduler.plan()
        self.metrics.step(plan, self.scheduler.commit(plan, results), started, ended)

    @property
    def samples(self):
        return samples(generate_latest(self.metrics).decode())


def test_times_run_from_arrival_over_the_queue_to_the_first_token_and_the_last():
    driven = Driven()
    driven.add(a_request("a", tokens=3), 10.0)
    driven.step(10.25, 11.0, [Sampled(5)])
    driven.step(11.0, 11.5, [Sampled(6)])
    driven.step(11.5, 13.0, [Sampled(7)])
    found = driven.samples
    for name, seconds in {
        "request_queue_time_seconds": 0.25,
        "request_prefill_time_seconds": 0.75,
        "time_to_first_token_seconds": 1.0,
        "inter_token_latency_seconds": 2.0,
        "request_decode_time_seconds": 2.0,
        "e2e_request_latency_seconds": 3.0,
        "step_time_seconds": 2.75,
    }.items():
        assert found[f"{name}_sum"] == pytest.approx(seconds), name
    assert found["inter_token_latency_seconds_count"] == 2
    assert found["inter_token_latency_seconds_bucket 0.5"] == 1
    assert found["inter_token_latency_seconds_bucket 1.5"] == 2
    assert found["request_success_total length"] == 1


def test_tokens_of_one_step_share_its_time():
    """Check tokens of accepted drafts: they must not look like pauses and bursts, and their number must be right."""
    driven = Driven(cheap_tokens=8)
    driven.add(a_request("a", prompt=[1, 2, 3, 4, 5, 6] * 3, tokens=20), 0.0)
    driven.step(0.0, 1.0, [Sampled(1)])
    plan = driven.scheduler.plan()
    (run,) = plan.runs
    assert run.drafted, "the prompt repeats, so its continuation is drafted"
    given = [Sampled(token) for token in (*run.drafted, 9)]
    driven.metrics.step(plan, driven.scheduler.commit(plan, [given]), 1.0, 1.0 + 0.3 * len(given))
    found = driven.samples
    assert found["inter_token_latency_seconds_count"] == len(given)
    assert found["inter_token_latency_seconds_bucket 0.4"] == len(given)
    assert found["inter_token_latency_seconds_bucket 0.2"] == 0
    assert found["spec_decode_num_accepted_tokens_total"] == len(run.drafted)


def test_a_sequence_that_ends_by_an_error_is_no_success():
    driven = Driven()
    driven.add(a_request("a"), 0.0)
    driven.step(0.0, 1.0, InternalError("so it is"))
    found = driven.samples
    assert found["request_success_total stop"] == found["request_success_total length"] == 0
    assert all(found[f"{name}_count"] == 0 for name in (*WHOLE, *WITH_TOKENS))


def test_what_gives_no_token_has_no_first_token():
    """Check a request without tokens: an embedding or a scored prompt would lower the median time to first token."""
    driven = Driven()
    driven.add(a_request("a", tokens=0), 0.0)
    driven.step(0.5, 1.0, [Sampled(5)])
    found = driven.samples
    assert all(found[f"{name}_count"] == 1 for name in WHOLE)
    assert all(found[f"{name}_count"] == 0 for name in WITH_TOKENS)
    assert found["request_prefill_time_seconds_sum"] == pytest.approx(0.5)
    assert (found["request_success_total length"], found["generation_tokens_total"]) == (1, 0)


def test_the_cache_and_the_slots_say_what_runs_and_what_is_kept():
    driven = Driven(max_cache_tokens=100, reuse_prefixes=True)
    driven.add(a_request("a", prompt=range(1, 11), tokens=1), 0.0)
    driven.step(0.0, 1.0, [Sampled(5)])
    driven.add(a_request("b", prompt=range(20, 30), tokens=15), 1.0)
    driven.step(1.0, 2.0, [Sampled(5)])
    found = driven.samples
    assert (found["num_slots"], found["num_slots_used"], found["num_requests_running"]) == (4, 2, 1)
    assert found["kv_cache_usage_perc"] == 0.25, "what is kept gives way, so only what runs is used"
    assert (found["cache_tokens"], found["cache_tokens_limit"]) == (35, 100)


def test_without_a_limit_the_cache_is_as_full_as_the_slots():
    driven = Driven()
    driven.add(a_request("a"), 0.0)
    driven.step(0.0, 1.0, [Sampled(5)])
    assert (driven.samples["kv_cache_usage_perc"], driven.samples["cache_tokens_limit"]) == (0.25, float("inf"))


@pytest.fixture
def engine():
    engine = BatchEngine(ScriptedRunner(), decode, EngineConfig(max_waiting=4, max_running=3))
    yield engine
    engine.shutdown()


async def test_an_engine_counts_what_it_was_asked_and_gave(engine):
    prompt = tuple(range(1, 21))
    events = [await collect(engine, a_request(name, prompt, tokens=4)) for name in "abc"]
    one = await collect(engine, a_request("d", prompt, tokens=2))
    found = samples(engine.metrics())
    given = sum(event.tokens for event in (*events, one))
    reused = sum(event.cached_tokens for event in (*events, one))
    assert reused > 0
    assert found["prompt_tokens_total"] == found["prefix_cache_queries_total"] == 4 * len(prompt)
    assert found["prefix_cache_hits_total"] == reused
    assert found["generation_tokens_total"] == given == found["request_generation_tokens_sum"]
    assert found["inter_token_latency_seconds_count"] == given - 4
    assert all(found[f"{name}_count"] == 4 for name in (*WHOLE, *WITH_TOKENS))
    assert found["num_requests_running"] == found["num_requests_waiting"] == found["kv_cache_usage_perc"] == 0
    assert found["step_batch_size_count"] == found["step_time_seconds_count"] == engine.stats().steps


async def test_the_prompt_of_several_sequences_counts_once(engine):
    """Check that the sum of prompt tokens equals that of the answers' usage."""
    async for _ in engine.submit(a_request("a", sequences=3)):
        pass
    found = samples(engine.metrics())
    assert found["prompt_tokens_total"] == 2
    assert found["prefix_cache_queries_total"] == 6
    assert found["request_success_total length"] + found["request_success_total stop"] == 3


async def test_beam_search_counts(engine):
    async for _ in engine.submit(a_request("a", num_beams=2, sequences=2)):
        pass
    found = samples(engine.metrics())
    assert found["request_success_total stop"] + found["request_success_total length"] == 2
    assert found["prompt_tokens_total"] == 2
    assert found["generation_tokens_total"] == 5
    assert found["num_requests_waiting"] == 0


def test_buckets_resolve_five_milliseconds_where_a_reader_waits():
    for name in ("rungpt_time_to_first_token_seconds", "rungpt_inter_token_latency_seconds"):
        buckets = HISTOGRAMS[name][0]
        assert set(range(5, 101, 5)) <= {round(bound * 1000, 6) for bound in buckets}
    assert all(list(buckets) == sorted(set(buckets)) for buckets, _ in HISTOGRAMS.values())


def test_a_value_on_a_bound_is_within_it():
    histogram = Histogram((1, 2))
    for value in (1, 1.5, 2, 3):
        histogram.add(value)
    assert [s.value for s in histogram.family("x", "x").samples if s.name == "x_bucket"] == [1, 3, 4]


@pytest.mark.alone
def test_a_step_of_64_rows_costs_less_than_a_millisecond():
    """Check the time of a step. On an idle machine it takes about a tenth of the bound, which allows for other load."""
    driven = Driven(max_running=64, max_waiting=64, max_step_tokens=1000)
    for i in range(64):
        driven.add(a_request(str(i), (10,), tokens=1000), 0.0)
    driven.step(0.0, 0.1, *[[Sampled(5)]] * 64)
    plan = driven.scheduler.plan()
    outcomes = driven.scheduler.commit(plan, [[Sampled(5)]] * 64)
    seconds = []
    for _ in range(50):
        before = time.perf_counter()
        driven.metrics.step(plan, outcomes, 0.1, 0.2)
        seconds.append(time.perf_counter() - before)
    assert min(seconds) < 0.001
