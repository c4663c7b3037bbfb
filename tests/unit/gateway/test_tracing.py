"""The gateway's spans, without a server: without these tests they could miss retries and the time to the end."""

import logging
import subprocess
import sys
import threading
from typing import Any, cast

import httpx
import pytest
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from test_pool import GONE, REQUEST, ScriptedReplica, pool_of, unary

from run_gpt.config import GatewayConfig
from run_gpt.errors import InternalError, Unavailable
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import guarded
from run_gpt.gateway.record import Record
from run_gpt.gateway.request_span import carried
from run_gpt.gateway.service import Service
from run_gpt.gateway.tracing import Tracing
from run_gpt.process import tracing

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Sent:
    """A provider as Jina makes it, and the spans that it sent."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> Any:
        return self._exporter.get_finished_spans()


@pytest.fixture
def sent() -> Sent:
    return Sent()


def a_replica(address: str, *scripts: Any, **options: Any) -> Any:
    replica = cast("Any", ScriptedReplica(*scripts, **options))
    replica.address, replica.model = address, "m"
    return replica


def client_of(service: Service) -> httpx.AsyncClient:
    assert service.tracing
    app = service.tracing.http(guarded(build_app(service), service.config, None, service.count))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_request_that_went_to_another_replica_says_so_and_why(sent: Sent) -> None:
    draining = Unavailable("the engine is draining")
    gone, refusing = a_replica("gone:1", [GONE]), a_replica("refusing:1", [draining], says="draining")
    pool = pool_of(gone, refusing, good := a_replica("good:1", [unary("hello")]))
    refusing.in_flight, good.in_flight = 1, 2  # so they are tried in this order
    client = client_of(Service([pool], GatewayConfig(), Tracing(sent.provider)))
    answer = await client.post("/generate", json={"prompt": REQUEST.prompt}, headers={"traceparent": TRACEPARENT})
    assert answer.status_code == 200
    [span] = sent.spans
    assert [(event.name, dict(event.attributes)) for event in span.events] == [
        ("retry", {"rungpt.replica": "refusing:1", "error.type": "unavailable"}),
        ("retry", {"rungpt.replica": "good:1", "error.type": "unavailable"}),
    ]
    assert (span.attributes["rungpt.replica"], span.attributes["gen_ai.request.model"]) == ("good:1", "m")
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == TRACEPARENT[3:-3]
    assert span.status.status_code == StatusCode.UNSET


async def test_a_fault_of_the_server_is_an_error_and_one_of_the_client_is_not(sent: Sent) -> None:
    pool = pool_of(a_replica("a:1", [InternalError("so it is")]))
    client = client_of(Service([pool], GatewayConfig(), Tracing(sent.provider)))
    for body in ({"prompt": "x"}, {"prompt": ""}):
        await client.post("/generate", json=body)
    await client.get("/generate")
    told = [(span.attributes["error.type"], span.status.status_code == StatusCode.ERROR) for span in sent.spans]
    assert told == [("internal_error", True), ("invalid_value", False), ("method_not_allowed", False)]


def test_an_error_in_the_middle_of_a_stream_is_one_though_its_status_is_200(sent: Sent) -> None:
    made = Tracing(sent.provider)
    for error in ("deadline_exceeded", "cut_off"):
        made._begin("POST /generate", {}, {})
        made.end(Record(method="POST", route="/generate", error=error), "200")
    assert [span.status.status_code == StatusCode.ERROR for span in sent.spans] == [True, False]


async def test_pages_and_routes_that_are_not_there_have_no_span(sent: Sent) -> None:
    client = client_of(Service([pool_of(a_replica("a:1"))], GatewayConfig(), Tracing(sent.provider)))
    for path in ("/", "/health", "/docs", "/nowhere", "/v1"):
        await client.get(path)
    await client.options("/generate")
    assert not sent.spans
    await client.get("/v1/models/org/model")
    assert [span.name for span in sent.spans] == ["GET /v1/models/{model}"]


def test_jinas_own_spans_are_not_sent_and_hand_on_what_they_get(sent: Sent) -> None:
    """Otherwise our spans would be children of spans that are never sent, and a trace would fall apart."""
    jinas = sent.provider.get_tracer("causal_lm/rep-0")
    ours = tracing.tracer_of(sent.provider)
    with (
        jinas.start_as_current_span("stream_doc", extract({"traceparent": TRACEPARENT})),
        sent.provider.get_tracer("another").start_as_current_span("/generate_stream"),
    ):
        ours.start_span("chat").end()
    [span] = sent.spans
    assert f"{span.parent.span_id:016x}" in TRACEPARENT


def test_a_request_without_a_span_carries_nothing() -> None:
    assert carried() == {}


def test_the_end_of_a_process_does_not_wait_for_a_collector(
    sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.05)
    away = threading.Event()
    monkeypatch.setattr(sent.provider, "shutdown", lambda: away.wait(60))
    tracing.tracer_of(sent.provider)
    with caplog.at_level(logging.WARNING):
        sent.provider.force_flush()
        sent.provider.shutdown()
    assert not away.is_set()
    away.set()
    assert "the collector of traces did not take the last spans in 0.05 s: they are lost" in caplog.text


def test_without_traces_nothing_of_them_is_imported() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import run_gpt.gateway.gateway, run_gpt.gateway.pool\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])\n"
        "print('run_gpt.gateway.tracing' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-2:] == ["[]", "False"]
