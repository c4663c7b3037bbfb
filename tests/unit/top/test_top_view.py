"""Numbers of `rungpt top` from two readings: wrong ones would lead its users to the wrong fault."""

import pytest
from exposition import Exposition

from run_gpt.errors import SetupError
from run_gpt.top.reading import Reading, parse
from run_gpt.top.view import view_of
from run_gpt.top.watch import Watch

A, B = "127.0.0.1:5001", "127.0.0.1:5002"


def ready(**states):
    each = [{"address": address, "state": state} for address, state in states.items()]
    return {
        "ready": True,
        "model": "smollm2",
        "replicas": {"ready": list(states.values()).count("ready"), "total": len(states), "each": each},
    }


def reading(server, at, states=None):
    return Reading(at, 1000.0 + at, parse(server.text()), ready(**(states or {A: "ready", B: "ready"})))


@pytest.fixture
def two_replicas():
    """Return a server with two replicas that have worked for a while."""
    server = Exposition()
    for address in (A, B):
        server.of("num_requests_running", address).set(1)
        server.of("num_slots", address).set(16)
        server.of("num_slots_used", address).set(3)
        server.of("kv_cache_usage_perc", address).set(0.25)
        for name in ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"):
            server.of(name, address).inc(1000)
        server.of("step_time_seconds", address).observe(4)
        server.of("step_batch_size", address).observe(1)
        server.restarts.labels(address)
    server.requests.labels("/chat", "200", "default").inc(100)
    return server


def test_rates_are_of_the_time_between_the_readings(two_replicas):
    server = two_replicas
    before = reading(server, 10)
    server.of("generation_tokens", A).inc(80)
    server.of("generation_tokens", B).inc(20)
    server.of("prompt_tokens", A).inc(40)
    server.of("prefix_cache_queries", A).inc(40)
    server.of("prefix_cache_hits", A).inc(10)
    server.of("step_time_seconds", A).observe(0.01)
    server.of("step_time_seconds", A).observe(0.02)
    server.of("step_batch_size", A).observe(3)
    server.of("step_batch_size", A).observe(4)
    server.requests.labels("/chat", "200", "default").inc(4)
    server.requests.labels("/generate", "429", "default").inc(1)
    server.requests.labels("other", "200", "default").inc(2)  # the reading itself
    server.finished.labels("smollm2", A, "stop").inc(4)
    server.errors.labels("queue_full").inc(1)
    server.restarts.labels(B).inc(2)
    view = view_of(before, reading(server, 12))
    assert (view.model, view.version, view.ready, view.total, view.seconds) == ("smollm2", "0.2.0", 2, 2, 2)
    assert (view.generated_tokens, view.prompt_tokens, view.reused_share) == (50, 20, 0.25)
    assert view.requests == {"200": 2, "429": 0.5}
    assert view.finished == {"stop": 2}
    assert view.errors == {"queue_full": (1, 0.5)}
    a, b = view.replicas
    assert (a.address, a.tokens_per_second, a.running, a.slots_used, a.slots) == (A, 40, 1, 3, 16)
    assert (a.kv_share, a.batch, a.restarts) == (0.25, 3.5, 0)
    assert a.step_seconds == pytest.approx(0.015)
    assert (b.tokens_per_second, b.step_seconds, b.batch, b.restarts) == (10, None, None, 2)
    assert view.restarted == [B]


def test_the_uptime_is_the_gateways(two_replicas):
    """Only the uptime shows that a server was restarted a minute ago."""
    two_replicas.started.set(900)
    two_replicas.of("process_start_time_seconds", A).set(100)
    view = view_of(reading(two_replicas, 10), reading(two_replicas, 12))
    assert view.uptime == 112


def test_quantiles_are_of_the_interval_and_of_all_replicas(two_replicas):
    """Hours of quick answers must not hide that the last second was slow."""
    server = two_replicas
    for _ in range(1000):
        server.of("time_to_first_token_seconds", A).observe(0.001)
    server.of("time_to_first_token_seconds", B).observe(0.001)
    before = reading(server, 0)
    for _ in range(5):
        server.of("time_to_first_token_seconds", A).observe(0.04)
        server.of("time_to_first_token_seconds", B).observe(0.07)
    p50, p90 = view_of(before, reading(server, 1)).ttft
    assert p50 == pytest.approx(0.05)
    assert p90 == pytest.approx(0.09)
    assert view_of(before, reading(server, 1)).inter_token == (None, None)


def test_a_restarted_replica_counts_from_zero_and_is_reported(two_replicas):
    before = reading(two_replicas, 0)
    again = Exposition()
    for address, tokens, seconds in ((A, 1010, 4.5), (B, 30, 0.5)):
        again.of("num_requests_running", address).set(0)
        again.of("generation_tokens", address).inc(tokens)
        for _ in range(2 if address == A else 0):
            again.of("step_time_seconds", address).observe(seconds)
    again.of("step_time_seconds", B)
    again.requests.labels("/chat", "200", "default").inc(101)
    again.restarts.labels(B)  # the gateway has not noticed yet
    view = view_of(before, reading(again, 1))
    assert view.generated_tokens == 40
    assert view.restarted == [B]


def test_a_replica_that_comes_into_view_has_not_made_all_its_tokens_now(two_replicas):
    new = "127.0.0.1:5003"
    before = reading(two_replicas, 0)
    two_replicas.of("num_requests_running", new).set(0)
    two_replicas.of("generation_tokens", new).inc(90_000)
    view = view_of(before, reading(two_replicas, 1, {A: "ready", B: "lost", new: "ready"}))
    assert view.generated_tokens == 0
    assert [(row.address, row.state) for row in view.replicas] == [(B, "lost"), (A, "ready"), (new, "ready")]


def test_several_models_have_separate_rows(two_replicas):
    server = two_replicas
    server.of("num_requests_running", A, "tiny").set(3)
    server.of("generation_tokens", A, "tiny").inc(7)
    before = reading(server, 0)
    server.of("generation_tokens", A, "tiny").inc(30)
    server.loads.labels("tiny").inc(2)
    server.unloads.labels("tiny").inc()
    server.failed_loads.labels("asleep").inc()
    after = reading(server, 2)
    assert view_of(before, after).models == [], "of one model all else tells"
    after.ready["models"] = {"smollm2": "loaded", "tiny": "loaded", "asleep": "failed"}
    after.ready["replicas"]["each"][0]["model"] = "tiny"
    view = view_of(before, after)
    assert view.model == "smollm2, tiny, asleep"
    assert [(row.name, row.state, row.running, row.tokens_per_second) for row in view.models] == [
        ("smollm2", "loaded", 2, 0),
        ("tiny", "loaded", 3, 15),
        ("asleep", "failed", 0, 0),
    ]
    assert [(row.loads, row.failed_loads, row.unloads) for row in view.models] == [(0, 0, 0), (2, 0, 1), (0, 1, 0)]
    assert view.replicas[0].model == "tiny"


def test_a_model_that_was_loaded_again_is_no_replica_that_died(two_replicas):
    before = reading(two_replicas, 0)
    again = Exposition()
    for address in (A, B):
        again.of("num_requests_running", address).set(0)
        again.of("step_time_seconds", address)
    again.requests.labels("/chat", "200", "default").inc(101)
    again.loads.labels("smollm2").inc()
    states = {A: "ready", B: "unloaded", "127.0.0.1:5003": "lost"}
    view = view_of(before, reading(again, 1, states))
    assert view.restarted == []
    assert [row.state for row in view.replicas] == ["lost", "ready", "unloaded"]


def test_a_replica_without_metrics_has_a_row(two_replicas):
    """A missing replica is the one that users look for."""
    before = reading(two_replicas, 0)
    view = view_of(before, reading(two_replicas, 1, {A: "ready", B: "ready", "127.0.0.1:5009": "connecting"}))
    row = view.replicas[0]
    assert (row.state, row.running, row.tokens_per_second, row.step_seconds) == ("connecting", None, None, None)


class Scripted:
    """Source that gives these readings, or raises these errors, one after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def read(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_server_that_does_not_answer_for_a_while_is_a_note_and_keeps_its_last_view(two_replicas):
    first, second, third = (reading(two_replicas, at) for at in (0, 1, 9))
    watch = Watch(Scripted(first, second, SetupError("no server answers"), third))
    watch.start()
    view = watch.poll().view
    gone = watch.poll()
    assert gone.view is view
    assert gone.notes == ["no answer for 0 s: no server answers"]
    back = watch.poll()
    assert back.notes == []
    assert back.view.seconds == 8


def test_a_restart_of_the_server_is_reported_for_a_while(two_replicas):
    again = Exposition()
    again.requests.labels("/chat", "200", "default").inc(1)
    later = reading(again, 2)
    watch = Watch(Scripted(reading(two_replicas, 0), later, later))
    watch.start()
    assert watch.poll().notes == ["started again: gateway"]
    assert watch.poll().notes == ["started again: gateway"]


def test_a_first_reading_that_fails_is_an_error():
    """A user who mistyped the URL must see an error instead of an empty screen."""
    with pytest.raises(SetupError, match="no server"):
        Watch(Scripted(SetupError("no server"))).start()
