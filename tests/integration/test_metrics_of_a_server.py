"""`/metrics` of a server with the default model: without these tests it could differ from the requests and answers."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

ASKED = 6
ENGINE = ("e2e_request_latency_seconds", "time_to_first_token_seconds", "request_generation_tokens")


def read(server: Any) -> dict[str, float]:
    """Return the samples, by name and labels, without the labels of model and replica."""
    answer = httpx.get(f"{server.http_url}/metrics", timeout=10)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for sample in (s for family in text_string_to_metric_families(answer.text) for s in family.samples):
        labels = {name: value for name, value in sample.labels.items() if name not in ("model", "replica")}
        found[" ".join([sample.name.removeprefix("rungpt_"), *(labels[name] for name in sorted(labels))])] = (
            sample.value
        )
    return found


def test_counters_are_what_was_asked_and_answered(server: Any) -> None:
    before = read(server)
    prompt = "The metrics of a server are read by its operator, who knows what was asked. Number "

    def ask(number: int) -> dict[str, Any]:
        request = {"prompt": f"{prompt}{number}", "max_new_tokens": 24, "min_new_tokens": 4}
        answer = httpx.post(f"{server.http_url}/generate", json=request, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()

    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(ask, range(ASKED)))
    after = read(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}

    usage = [answer["usage"] for answer in answers]
    given = sum(one["completion_tokens"] for one in usage)
    reused = sum(one["prompt_tokens_details"]["cached_tokens"] for one in usage)
    assert grown["prompt_tokens_total"] == sum(one["prompt_tokens"] for one in usage)
    assert grown["prefix_cache_queries_total"] == grown["prompt_tokens_total"]
    assert grown["prefix_cache_hits_total"] == reused
    assert reused > 0
    assert grown["generation_tokens_total"] == grown["request_generation_tokens_sum"] == given
    assert grown["inter_token_latency_seconds_count"] == given - ASKED
    assert all(grown[f"{name}_count"] == grown[f"{name}_bucket +Inf"] == ASKED for name in ENGINE)
    reasons = [answer["choices"][0]["finish_reason"] for answer in answers]
    for reason in ("stop", "length"):
        assert grown[f"request_success_total {reason}"] == reasons.count(reason)
    whole = grown["e2e_request_latency_seconds_sum"]
    parts = ("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds")
    assert abs(whole - sum(grown[f"{part}_sum"] for part in parts)) < 0.001 * ASKED
    assert grown["gateway_requests_total /generate  200"] == ASKED
    assert grown["gateway_request_seconds_sum /generate"] > whole, "the gateway's way is longer than the engine's"
    assert after["num_requests_running"] == after["num_requests_waiting"] == after["kv_cache_usage_perc"] == 0
    assert after["num_slots_used"] > 0, "what ran is kept for reuse"
    assert after["replicas ready"] == 1


def test_it_answers_while_the_engine_is_busy(server: Any) -> None:
    """Operators read the metrics when a server is slow."""
    request = {"prompt": "Once upon a time", "max_new_tokens": 200, "min_new_tokens": 200}
    read(server)
    with ThreadPoolExecutor(4) as threads:
        running = [
            threads.submit(httpx.post, f"{server.http_url}/generate", json=request, timeout=120) for _ in range(4)
        ]
        while not read(server)["num_requests_running"]:
            assert not all(one.done() for one in running)
        started = time.monotonic()
        found = read(server)
        seconds = time.monotonic() - started
        assert all(one.result().status_code == 200 for one in running)
    assert "num_requests_running" in found
    assert seconds < 2, "within a second, and what a busy machine adds"
