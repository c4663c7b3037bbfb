"""Without these tests the latencies and failures by which users choose a server could be wrong."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from run_gpt.bench.lengths import Lengths
from run_gpt.bench.load import Bounds, Level, arrivals
from run_gpt.bench.online import Plan, measure
from run_gpt.bench.results import Results
from run_gpt.bench.workload import WorkloadConfig
from run_gpt.client.endpoint import Endpoint
from run_gpt.errors import SetupError


def measured(url: str, *levels: Level, token: str | None = None, **settings: Any) -> Results:
    """Measure these loads, without a warm-up unless the settings ask for one."""
    workload = WorkloadConfig(Lengths("fixed", 5), Lengths("fixed", 5), **settings.pop("workload", {}))
    bounds = Bounds(**{"requests": 8, "seconds": 10, "timeout": 10} | settings.pop("bounds", {}))
    given = {"warmup": 0, "bounds": bounds, **settings}
    plan = Plan(Endpoint.parse(url), levels or (Level("closed", 4),), workload, **given)

    async def bounded() -> Results:
        async with asyncio.timeout(60):
            return await measure(plan, token, lambda run: None)

    return asyncio.run(bounded())


@pytest.mark.alone
def test_latencies_are_those_of_the_server(scripted: Callable[..., Any]) -> None:
    """TTFT and TPOT within 5 % of the script, over a load that keeps four in flight."""
    script = scripted(ttft=0.4, gap=0.05, tokens=9)
    results = measured(script.url, Level("closed", 4))
    [summary] = results.summaries
    latencies = {name: stats.p50 for name, stats in summary.latencies.items() if stats}
    assert latencies["ttft"] == pytest.approx(400, rel=0.05)
    assert latencies["tpot"] == pytest.approx(50, rel=0.05)
    assert latencies["itl"] == pytest.approx(50, rel=0.05)
    assert latencies["e2e"] == pytest.approx(800, rel=0.05)
    assert script.most_in_flight == 4
    assert summary.ok == 8
    assert summary.latencies["itl"] is not None
    assert summary.latencies["itl"].count == 8 * 8
    assert summary.output_tokens_per_second == pytest.approx(8 * 9 / summary.seconds)
    assert summary.total_tokens_per_second == pytest.approx(8 * 16 / summary.seconds)
    assert (summary.counted_by, summary.prompt_tokens, summary.output_tokens) == ("usage", 7, 9)
    assert summary.reused == pytest.approx(2 / 7)


@pytest.mark.alone
def test_tokens_that_come_together_are_counted_by_usage(scripted: Callable[..., Any]) -> None:
    """Otherwise a server with three tokens in each event would look three times as slow."""
    script = scripted(ttft=0.05, gap=0.06, tokens=12, per_event=3)
    [summary] = measured(script.url).summaries
    assert summary.tokens_per_event == 3
    assert summary.latencies["itl"] is not None
    assert summary.latencies["itl"].p50 == pytest.approx(60, rel=0.1)
    assert summary.latencies["tpot"] is not None
    assert summary.latencies["tpot"].p50 == pytest.approx(3 * 60 / 11, rel=0.1)


def test_without_usage_events_are_counted_and_this_is_said(scripted: Callable[..., Any]) -> None:
    [summary] = measured(scripted(usage=False).url).summaries
    assert (summary.counted_by, summary.output_tokens) == ("events", 5)
    assert summary.total_tokens_per_second is None
    assert any("gave no usage" in text for text in summary.warnings())


def test_failures_are_counted_by_their_kind(scripted: Callable[..., Any]) -> None:
    script = scripted(behaviours=("ok", "429", "cut", "error", "hang", "reset", "503", "ok"))
    results = measured(script.url, Level("closed", 8), bounds={"timeout": 1.0})
    [summary] = results.summaries
    assert summary.ok == 2
    assert summary.failures == {
        "status 429": 1,
        "status 503": 1,
        "broken stream": 1,
        "error internal_error": 1,
        "timeout": 1,
        "connection": 1,
    }
    assert summary.latencies["e2e"] is not None
    assert summary.latencies["e2e"].count == 2, "latencies are of whole answers"
    assert next(s.detail for s in results.runs[0].samples if s.failure == "error internal_error") == "it broke"


def test_goodput_is_what_keeps_every_limit(scripted: Callable[..., Any]) -> None:
    """Two of eight requests fail. The others count with limits that the script keeps, and none with stricter limits."""
    script = scripted(ttft=0.1, gap=0.02, behaviours=("ok", "ok", "ok", "500"))
    [good] = measured(script.url, limits={"ttft": 5000.0, "e2e": 9000.0}).summaries
    assert good.goodput == pytest.approx(6 / good.seconds)
    [bad] = measured(script.url, limits={"ttft": 5000.0, "tpot": 10.0}).summaries
    assert bad.goodput == 0


@pytest.mark.parametrize("rate", [2.0, 50.0])
def test_arrivals_are_a_poisson_process_that_the_seed_gives(rate: float) -> None:
    due = arrivals(rate, 4000, seed=7)
    gaps = np.diff(due, prepend=0.0)
    assert np.array_equal(due, arrivals(rate, 4000, seed=7))
    assert not np.array_equal(due, arrivals(rate, 4000, seed=8))
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.08), "of an exponential distribution both are the same"


def test_an_open_loop_sends_when_requests_are_due_however_slow_answers_are(scripted: Callable[..., Any]) -> None:
    script = scripted(together=20)
    results = measured(script.url, Level("open", 40), bounds={"requests": 20})
    starts = [sample.start for sample in results.runs[0].samples]
    assert starts == pytest.approx(arrivals(40, 20, seed=0).tolist())
    assert script.most_in_flight == 20


def test_a_load_ends_with_its_seconds(scripted: Callable[..., Any]) -> None:
    script = scripted(ttft=0.1)
    bounds = {"requests": 10_000, "seconds": 0.5}
    results = measured(script.url, Level("closed", 2), Level("open", 20), bounds=bounds)
    # On a busy machine a request may start later than it was decided.
    assert all(sample.start < 5 for run in results.runs for sample in run.samples)
    assert all(0 < len(run.samples) < 40 for run in results.runs)


def test_a_sweep_ends_where_a_server_brings_no_more(scripted: Callable[..., Any]) -> None:
    """With two slots, more than four requests in flight bring hardly anything."""
    script = scripted(ttft=0.06, gap=0.002, slots=2)
    results = measured(script.url, Level("closed", 2), sweep=True, bounds={"requests": 32})
    assert results.saturation is not None
    assert results.saturation.level.value <= 4
    assert "brings" in results.saturation.reason


def test_a_sweep_stops_where_limits_break(scripted: Callable[..., Any]) -> None:
    script = scripted(ttft=0.1, gap=0.005, slots=2)
    limits = {"ttft": 160.0}
    results = measured(script.url, Level("closed", 2), sweep=True, limits=limits, bounds={"requests": 16})
    assert results.saturation is not None
    assert results.saturation.level.value == 2
    assert "kept the limits at concurrency 4" in results.saturation.reason


def test_a_sweep_ends_with_the_requests_that_it_may_send(scripted: Callable[..., Any]) -> None:
    results = measured(scripted().url, Level("closed", 1), sweep=True, bounds={"requests": 8})
    assert results.saturation is not None
    assert max(run.level.value for run in results.runs) <= 2


def test_a_warm_up_is_not_counted(scripted: Callable[..., Any]) -> None:
    script = scripted()
    results = measured(script.url, warmup=3)
    assert len(script.bodies) == 11
    assert len(results.runs[0].samples) == 8


def test_a_server_that_refuses_everything_is_an_error_and_no_result(scripted: Callable[..., Any]) -> None:
    with pytest.raises(SetupError, match=r"answers no request: status 429: .*said so"):
        measured(scripted(behaviours=("429",)).url, warmup=2)


def test_no_server_is_an_error_of_one_line(free_ports: Callable[[int], list[int]]) -> None:
    with pytest.raises(SetupError, match="no server answers at http://127"):
        measured(f"http://127.0.0.1:{free_ports(1)[0]}")


def test_requests_are_openais_and_have_the_key(scripted: Callable[..., Any]) -> None:
    script = scripted()
    results = measured(f"{script.url}/v1", token="secret-of-the-test", extra_body={"temperature": 0})
    body = script.bodies[0]
    assert len(body.pop("messages")[0]["content"].split()) == 5
    assert body == {
        "model": "scripted",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    assert script.headers[0].startswith("POST /v1/chat/completions ")
    assert "authorization: bearer secret-of-the-test" in script.headers[0].lower()
    assert "secret" not in str(results.arguments) + str(results.environment)


def test_chats_go_on_after_the_answers_that_they_got(scripted: Callable[..., Any]) -> None:
    """Otherwise the benchmark would measure a common prefix that no user has."""
    script = scripted()
    bounds = {"requests": 6}
    measured(script.url, Level("closed", 1), workload={"system_words": 9, "turns": 3}, bounds=bounds)
    chats = [body["messages"] for body in script.bodies]
    roles = [[message["role"] for message in chat] for chat in chats]
    assert roles[2] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert roles[3] == ["system", "user"], "the fourth request begins a new chat"
    assert chats[1][2]["content"] == "word " * 5
    assert chats[2][:4] == chats[1]
    assert chats[0][0] == chats[3][0]
    assert chats[0][1] != chats[3][1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"exact_output": True}, "--exact-output is for --api chat and generate"),
        ({"bounds": {"requests": 3}}, "concurrency 4 needs as many requests"),
        ({"api_name": "openai-completions", "workload": {"turns": 2}}, "these are chats"),
    ],
)
def test_what_cannot_be_measured_is_refused(scripted: Callable[..., Any], settings: Any, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        measured(scripted().url, **settings)


def test_as_many_are_in_flight_as_were_asked_for(scripted: Callable[..., Any]) -> None:
    """With httpx's default limit the 101st request would wait, and the server would look slow."""
    script = scripted(together=150, tokens=1)
    [summary] = measured(script.url, Level("closed", 150), bounds={"requests": 150, "timeout": 60}).summaries
    assert summary.ok == 150
    assert script.most_in_flight == 150


def test_a_client_that_is_late_notices(scripted: Callable[..., Any]) -> None:
    plan = Plan(
        Endpoint.parse(scripted(ttft=0.1).url),
        (Level("closed", 1),),
        WorkloadConfig(Lengths("fixed", 5), Lengths("fixed", 5)),
        bounds=Bounds(requests=3),
        warmup=0,
    )
    # The sleep blocks the client's event loop, as its own work would.
    [summary] = asyncio.run(measure(plan, None, lambda run: time.sleep(0.05))).summaries
    assert summary.lag_max_ms > 25
    assert "the client itself was late" in summary.warnings()[0]


@pytest.mark.alone
def test_whole_answers_are_measured_beside_streams(scripted: Callable[..., Any]) -> None:
    """A loss of a third by streaming is visible only if both streams and whole answers are measured."""
    script = scripted(ttft=0.2, gap=0.02, tokens=6, per_event=2)
    streamed, whole = measured(script.url, Level("closed", 4), Level("closed", 4, streamed=False)).summaries
    assert (streamed.ok, whole.ok) == (8, 8)
    assert (streamed.events_per_answer, streamed.tokens_per_event) == (3, 2)
    assert (whole.events_per_answer, whole.tokens_per_event) == (None, None)
    assert (whole.counted_by, whole.prompt_tokens, whole.output_tokens) == ("usage", 7, 6)
    assert whole.latencies["e2e"] is not None
    assert whole.latencies["e2e"].p50 == pytest.approx(240, rel=0.1)
    assert [whole.latencies[name] for name in ("ttft", "tpot", "itl")] == [None] * 3
    assert [body.get("stream", False) for body in script.bodies] == [True] * 8 + [False] * 8


def test_failures_of_whole_answers_are_counted_by_their_kind(scripted: Callable[..., Any]) -> None:
    script = scripted(behaviours=("ok", "429", "error", "hang", "reset"))
    level = Level("closed", 5, streamed=False)
    [summary] = measured(script.url, level, bounds={"requests": 5, "timeout": 1.0}).summaries
    assert summary.ok == 1
    assert summary.failures == {"status 429": 1, "error internal_error": 1, "timeout": 1, "connection": 1}


def test_what_came_of_a_failed_stream_is_kept(scripted: Callable[..., Any]) -> None:
    results = measured(scripted(behaviours=("cut",), ttft=0.05).url, Level("closed", 1), bounds={"requests": 1})
    [sample] = results.runs[0].samples
    assert (sample.failure, len(sample.events)) == ("broken stream", 2)


def test_a_sweep_is_of_streams_or_of_whole_answers(scripted: Callable[..., Any]) -> None:
    levels = (Level("closed", 1), Level("closed", 1, streamed=False))
    with pytest.raises(SetupError, match="streamed or whole"):
        measured(scripted().url, *levels, sweep=True)
