"""Metrics of a gateway: without these tests operators could get wrong, endless or late figures."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from run_gpt.api.answers import Status
from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.config import GatewayConfig
from run_gpt.errors import AuthenticationError
from run_gpt.gateway import scrape as scraping
from run_gpt.gateway.grpc_access import AccessInterceptor
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import guarded
from run_gpt.gateway.metrics import GatewayMetrics, endpoint_label
from run_gpt.gateway.record import Record
from run_gpt.gateway.rights import EVERYTHING, Rights
from run_gpt.gateway.scrape import CONTENT_TYPE, joined, scrape
from run_gpt.gateway.service import Service

Samples = dict[str, float]
TEXT = """# HELP rungpt_generation_tokens_total Tokens of answers.
# TYPE rungpt_generation_tokens_total counter
rungpt_generation_tokens_total 5.0
# HELP rungpt_step_time_seconds Time of a step.
# TYPE rungpt_step_time_seconds histogram
rungpt_step_time_seconds_bucket{le="0.005"} 1.0
rungpt_step_time_seconds_bucket{le="+Inf"} 2.0
rungpt_step_time_seconds_count 2.0
rungpt_step_time_seconds_sum 0.5
"""


def samples(text: str | bytes) -> Samples:
    """Return the samples by name without `rungpt_` and the values of the labels, in the order of label names."""
    families = text_string_to_metric_families(text if isinstance(text, str) else text.decode())
    found: Samples = {}
    for sample in (sample for family in families for sample in family.samples):
        key = " ".join([sample.name.removeprefix("rungpt_"), *(value for _, value in sorted(sample.labels.items()))])
        assert key not in found, f"{key} is there twice"
        found[key] = sample.value
    return found


class Asked:
    """Stand-in for a replica: it returns this text, raises this error, or is silent."""

    def __init__(
        self, address: str, text: str | BaseException | None = TEXT, *, state: str = "ready", model: str = "m"
    ):
        self.address, self.text, self.state = address, text, state
        self.status = Status(state="ready", model=model, running=0, waiting=0)
        self.restarts, self.leaving, self.asked = 0, False, 0
        self.model, self.loads, self.takes_requests = model, False, state == "ready"

    def describe(self) -> dict[str, str]:
        return {"state": self.state}

    async def ask_metrics(self, timeout: float) -> str:
        self.asked += 1
        if isinstance(self.text, BaseException):
            raise self.text
        if self.text is None:
            await asyncio.Event().wait()
        return cast("str", self.text)


def service_over(*replicas: Asked) -> Service:
    ready = [replica for replica in replicas if replica.state == "ready"]
    pool = SimpleNamespace(replicas=list(replicas), ready=ready, sure=ready, retries=0, model="m", watched=True)
    pool.check_ready, pool.adapters = lambda: None, SimpleNamespace(applied=list)
    return Service([cast("Any", pool)], GatewayConfig())


async def read(service: Service) -> Samples:
    return samples(await scrape(service.models.replicas, service.metrics))


async def test_each_replica_has_its_samples_under_its_name() -> None:
    found = await read(service_over(Asked("10.0.0.1:5"), Asked("[::1]:6", model='a"b\\c')))
    assert found["generation_tokens_total m 10.0.0.1:5"] == 5
    assert found['generation_tokens_total a"b\\c [::1]:6'] == 5
    assert found["step_time_seconds_bucket +Inf m 10.0.0.1:5"] == 2
    assert found["step_time_seconds_sum m 10.0.0.1:5"] == 0.5
    assert found["replicas ready"] == 2


def test_a_family_is_told_once() -> None:
    """Prometheus refuses a text that gives the type of a metric twice."""
    families = joined([({"replica": "a"}, TEXT), ({"replica": "b"}, TEXT)])
    assert [(family.name, family.type) for family in families] == [
        ("rungpt_generation_tokens", "counter"),
        ("rungpt_step_time_seconds", "histogram"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        None,
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
        IndexError("an Executor without /metrics answers without a document"),
        KeyError("text"),
        asyncio.CancelledError(),
    ],
    ids=["silent", "gone", "without metrics", "without text", "closed"],
)
async def test_a_replica_that_gives_nothing_is_left_out_and_counted(
    text: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica that hangs would otherwise hide the metrics of all of them."""
    monkeypatch.setattr(scraping, "SCRAPE_SECONDS", 0.05)
    service = service_over(Asked("good"), Asked("bad", text))
    found = await read(service)
    assert "generation_tokens_total m good" in found
    assert "generation_tokens_total m bad" not in found
    assert found["gateway_scrape_failures_total"] == 1
    assert "bad" in caplog.text


async def test_many_silent_replicas_take_no_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "SCRAPE_SECONDS", 0.05)
    monkeypatch.setattr(scraping, "AT_ONCE", 2)
    service = service_over(*(Asked(str(i), None) for i in range(200)))
    before = time.monotonic()
    found = await read(service)
    assert time.monotonic() - before < 5, "one after the other they would take as long"
    assert found["gateway_scrape_failures_total"] == 200


async def test_only_what_answers_is_asked() -> None:
    """Replicas that load or are lost are no failures of a scrape: a metric shows their state."""
    states = ("ready", "draining", "connecting", "lost", "dead")
    replicas = [Asked(state, state=state) for state in states]
    found = await read(service_over(*replicas))
    assert [replica.state for replica in replicas if replica.asked] == ["ready", "draining"]
    assert {state: found[f"replicas {state}"] for state in (*states, "leaving")} == dict.fromkeys(states, 1) | {
        "leaving": 0
    }
    assert found["gateway_scrape_failures_total"] == 0


def test_labels_are_bounded() -> None:
    """A client that invents paths would otherwise fill Prometheus' memory."""
    assert endpoint_label("/v1/models/a/b") == "/v1/models/{model}"
    assert {endpoint_label(path) for path in ENDPOINTS} == set(ENDPOINTS)
    metrics = GatewayMetrics(cast("Any", SimpleNamespace(replicas=[], all=[])), lambda: 0)
    for i in range(500):
        metrics.count(Record(method="POST", route=f"/made/up/{i}", user=f"u{i}"), "404")
        metrics.count(Record(method="GET", route=f"/v1/models/{i}"), "404")
    metrics.count(Record(method="gRPC", route="/jina.JinaRPC/Call"), "OK")
    labels = [s.labels for family in metrics.families() for s in family.samples if s.name.endswith("requests_total")]
    assert labels == [
        {"endpoint": "other", "status": "404", "key": ""},
        {"endpoint": "/v1/models/{model}", "status": "404", "key": ""},
        {"endpoint": "other", "status": "OK", "key": ""},
    ]


def test_a_request_is_counted_with_its_key_its_status_and_its_error() -> None:
    hosted = SimpleNamespace(
        name="m", state="loaded", loads=1, failed_loads=0, unloads=2, pool=SimpleNamespace(retries=3)
    )
    metrics = GatewayMetrics(cast("Any", SimpleNamespace(replicas=[], all=[hosted])), lambda: 2)
    metrics.count(Record(method="POST", route="/chat", key="alice", started=time.perf_counter() - 0.07), "200")
    metrics.count(Record(method="POST", route="/chat_stream", key="alice", error="internal_error"), "200")
    metrics.count(Record(method="gRPC", route="/jina", endpoint="/chat", key="bob"), "CANCELLED")
    text = scraping.generate_latest(scraping._Joined(metrics.families())).decode()
    found = samples(text)
    assert found["gateway_requests_total /chat alice 200"] == 1
    assert found["gateway_requests_total /chat_stream alice 200"] == 1
    assert found["gateway_requests_total /chat bob CANCELLED"] == 1
    assert found["gateway_errors_total internal_error"] == found["gateway_errors_total cut_off"] == 1
    assert found["gateway_errors_total queue_full"] == 0, "a rate is known from the first one on"
    assert found["gateway_request_seconds_bucket /chat 0.05"] == 1
    assert found["gateway_request_seconds_count /chat"] == 2
    assert (found["gateway_retries_total"], found["gateway_in_flight"]) == (3, 2)
    assert sum(name.startswith("build_info ") for name in found) == 1
    assert "_created" not in text


class OneKey:
    def check(self, key: str | None) -> str:
        if key != "right":
            raise AuthenticationError("wrong")
        return "alice"

    async def admit(self, key: str | None, address: str) -> tuple[str, Rights]:
        return self.check(key), EVERYTHING


@pytest.fixture
def service() -> Service:
    return service_over(Asked("a"))


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    app = guarded(build_app(service), service.config, cast("Any", OneKey()), service.metrics.count)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


RIGHT = {"Authorization": "Bearer right"}


async def test_the_route_needs_a_key_and_speaks_the_text_form(client: httpx.AsyncClient) -> None:
    assert (await client.get("/metrics")).status_code == 401
    answer = await client.get("/metrics", headers=RIGHT)
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPE)
    assert samples(answer.text)["generation_tokens_total m a"] == 5
    assert (await client.head("/metrics", headers=RIGHT)).status_code == 200
    assert (await client.post("/metrics", headers=RIGHT)).status_code == 405


async def test_whatever_refuses_a_request_is_counted_by_its_code(client: httpx.AsyncClient, service: Service) -> None:
    await client.post("/chat", json={})
    await client.post("/chat", json={"nonsense": 1}, headers=RIGHT)
    await client.post("/generate", json={"prompt": "x", "model": "another"}, headers=RIGHT)
    await client.post("/adapters/load", json={"name": "a", "path": "b"}, headers=RIGHT)
    await client.post("/nowhere", json={}, headers=RIGHT)
    await client.get("/chat", headers=RIGHT)
    await client.post("/chat", json={}, headers={"Origin": "https://elsewhere.example"})
    await client.get("/health")
    await client.get("/ready")
    found = await read(service)
    for code, times in {
        "invalid_api_key": 1,
        "invalid_value": 1,
        "model_not_found": 1,
        "forbidden": 2,
        "unknown_endpoint": 1,
        "method_not_allowed": 1,
    }.items():
        assert found[f"gateway_errors_total {code}"] == times, code
    requests = {name: count for name, count in found.items() if name.startswith("gateway_requests_total")}
    assert sum(requests.values()) == 7, "probes are not counted"
    assert requests["gateway_requests_total /chat  401"] == 1
    assert requests["gateway_requests_total /chat alice 400"] == 1
    assert requests["gateway_requests_total other alice 404"] == 1


async def test_a_failure_that_nobody_thought_of_is_an_internal_error(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(service.models.all[0].pool, "whole", answer, raising=False)
    answer = await client.post("/generate", json={"prompt": "x"}, headers=RIGHT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert (await read(service))["gateway_errors_total internal_error"] == 1


async def test_a_grpc_method_that_there_is_not_is_counted() -> None:
    counted: list[tuple[str, str]] = []
    access = AccessInterceptor(None, lambda record, status: counted.append((record.route, status)))

    async def nothing(details: Any) -> None:
        return None

    for method in ("/no.Service/method", "/grpc.health.v1.Health/Nothing"):
        details = SimpleNamespace(method=method, invocation_metadata=())
        assert await access.intercept_service(nothing, details) is None
    assert counted == [("/no.Service/method", "UNIMPLEMENTED")]
