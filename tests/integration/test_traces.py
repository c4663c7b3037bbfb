"""Traces of a real server at a collector: without these tests traces could miss requests, or break them."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from collector import Collector, Span, collecting
from families import CONTEXT, write_checkpoint

from run_gpt.config import ServeConfig
from run_gpt.flows import Event, Server
from run_gpt.flows.ports import answers_ok
from run_gpt.flows.render import render_flow

KEYS = {"alice": "alice-key-1"}
FIELDS = {"max_new_tokens": 12, "min_new_tokens": 12}
PHASES = ["queue", "prefill", "decode"]
STOP_SECONDS = 10.0
"""Longest time that a server may take to end without its collector: 2 seconds in each of its two processes, and the
delay of a busy machine. The exporter alone would try for 10 in each."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny")


def a_config(model: Path, endpoint: str, **settings: Any) -> ServeConfig:
    return ServeConfig(model_name=str(model), precision="fp32", device="cpu", trace_endpoint=endpoint, **settings)


@contextmanager
def serving(model: Path, endpoint: str, said: list[Event], **settings: Any) -> Iterator[Server]:
    with Server(a_config(model, endpoint, grpc_port=0, http_port=0, **settings), said.append) as server:
        yield server


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def said() -> list[Event]:
    """Return the list of the server's events, which the server fills."""
    return []


@pytest.fixture(scope="module")
def server(
    model: Path, collector: Collector, said: list[Event], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Yield a server that sends its spans ten times a second, and requires a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("".join(f"{name}: {key}\n" for name, key in KEYS.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with serving(model, collector.endpoint, said, api_key_file=keys, host="127.0.0.1") as running:
            yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEYS['alice']}"}
    with httpx.Client(base_url=server.http_url, headers=headers, timeout=60) as client:
        yield client


class Caller:
    """A program that calls the server within a trace of its own."""

    def __init__(self, *, sampled: bool = True):
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-{'01' if sampled else '00'}"

    @property
    def headers(self) -> dict[str, str]:
        return {"traceparent": self.traceparent}


def tree(collector: Collector, caller: Caller, count: int) -> tuple[Span, list[Span], dict[str, list[Span]]]:
    """Return the gateway's span, its executors' spans, and the children of each by id, once there are `count` spans."""
    collector.wait_for(lambda _: len(collector.trace(caller.trace_id)) >= count)
    spans = collector.trace(caller.trace_id)
    assert len(spans) == count, [span.name for span in spans]
    [gateway] = [span for span in spans if span.parent_id == caller.span_id]
    executor = [span for span in spans if span.parent_id == gateway.span_id]
    inner = {one.span_id: [s for s in spans if s.parent_id == one.span_id] for one in executor}
    assert 1 + len(executor) + sum(map(len, inner.values())) == count, "a span belongs to none of these"
    return gateway, executor, inner


def check_phases(gateway: Span, executor: Span, phases: list[Span]) -> None:
    """Check that phases follow each other within the executor's span, and that span lies within the gateway's."""
    assert [phase.name for phase in sorted(phases, key=lambda phase: phase.start)] == PHASES
    queue, prefill, decode = (next(phase for phase in phases if phase.name == name) for name in PHASES)
    assert gateway.start <= executor.start <= queue.start
    assert queue.end == prefill.start
    assert prefill.end == decode.start
    assert decode.end <= executor.end <= gateway.end
    assert all(phase.seconds > 0 for phase in phases)


def test_a_request_is_one_trace_from_its_client_to_the_engine(client: httpx.Client, collector: Collector) -> None:
    caller = Caller()
    body = {"prompt": "In a village by the sea", "timings": True, "temperature": 0.5, "seed": 3, **FIELDS}
    answer = client.post("/generate", json=body, headers={**caller.headers, "X-Request-Id": "my-id"})
    assert answer.status_code == 200, answer.text
    gateway, [executor], inner = tree(collector, caller, 5)
    phases = inner[executor.span_id]
    check_phases(gateway, executor, phases)
    timings, usage, model = (answer.json()[name] for name in ("timings", "usage", "model"))
    for phase in phases:
        assert phase.seconds == pytest.approx(timings[f"{phase.name}_seconds"], abs=1e-5)
    assert (gateway.service, gateway.name) == ("gateway", "POST /generate")
    told = dict(gateway.attributes)
    assert told.pop("rungpt.request_id").startswith("rungpt-")
    assert told.pop("rungpt.replica").startswith("127.0.0.1:")
    assert told == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "rungpt.endpoint": "/generate",
        "rungpt.client_request_id": "my-id",
        "rungpt.key": "alice",
        "gen_ai.request.model": model,
    }
    assert (executor.service, executor.name) == ("causal_lm/rep-0", f"text_completion {model}")
    assert executor.attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "rungpt",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": answer.json()["id"],
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }
    assert not any(span.failed for span in (gateway, executor, *phases))


def test_a_stream_is_one_trace_that_ends_with_its_last_event(client: httpx.Client, collector: Collector) -> None:
    caller = Caller()
    messages = [{"role": "user", "content": "What is the capital?"}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 0, "stream": True}
    began, last = time.time(), 0.0
    with client.stream("POST", "/v1/chat/completions", json=body, headers=caller.headers) as answer:
        for line in answer.iter_lines():
            last = time.time() if line.startswith("data:") else last
    gateway, [executor], inner = tree(collector, caller, 5)
    check_phases(gateway, executor, inner[executor.span_id])
    assert (gateway.name, executor.name.split()[0]) == ("POST /v1/chat/completions", "chat")
    assert began <= gateway.start <= gateway.end <= last + 1
    assert 0 < executor.attributes["gen_ai.usage.output_tokens"] <= 12
    assert executor.attributes["gen_ai.response.finish_reasons"] in (["stop"], ["length"])


def test_several_prompts_are_several_spans_in_one(client: httpx.Client, collector: Collector) -> None:
    caller = Caller()
    body = {"prompt": ["In a village", "Every morning"], "max_tokens": 12, "temperature": 0, "timings": True}
    answer = client.post("/v1/completions", json=body, headers=caller.headers).json()
    gateway, executors, inner = tree(collector, caller, 9)
    for executor in executors:
        check_phases(gateway, executor, inner[executor.span_id])
    slowest = max(sum(phase.seconds for phase in phases) for phases in inner.values())
    assert answer["timings"]["total_seconds"] == pytest.approx(slowest, abs=1e-5)


def call(server: Server, metadata: tuple[tuple[str, str], ...], **fields: Any) -> Any:
    """Return the whole of gRPC's stream."""
    from jina.proto import jina_pb2

    from run_gpt.api import documents
    from run_gpt.api.schema import GenerateRequest

    document = documents.request_to_document(GenerateRequest.parse(fields))
    request = jina_pb2.SingleDocumentRequestProto(document=document.to_protobuf())
    request.header.exec_endpoint = "/generate_stream"
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        method = channel.unary_stream(
            "/jina.JinaSingleDocumentRequestRPC/stream_doc",
            request_serializer=jina_pb2.SingleDocumentRequestProto.SerializeToString,
            response_deserializer=jina_pb2.SingleDocumentRequestProto.FromString,
        )
        return list(method(request, metadata=metadata, timeout=60))


def test_grpc_goes_on_with_a_trace_as_well(server: Server, collector: Collector) -> None:
    caller = Caller()
    metadata = (("authorization", f"Bearer {KEYS['alice']}"), ("traceparent", caller.traceparent))
    assert call(server, metadata, prompt="In a village", **FIELDS)
    gateway, [executor], inner = tree(collector, caller, 5)
    check_phases(gateway, executor, inner[executor.span_id])
    assert gateway.name == "gRPC /generate_stream"
    told = {name: gateway.attributes[name] for name in ("rpc.system.name", "rpc.method", "rpc.response.status_code")}
    assert list(told.values()) == ["grpc", "jina.JinaSingleDocumentRequestRPC/stream_doc", "OK"]
    assert gateway.attributes["rungpt.key"] == "alice"


def test_an_error_of_a_client_is_recorded_and_is_no_error_of_the_server(
    client: httpx.Client, collector: Collector
) -> None:
    caller = Caller()
    answer = client.post("/generate", json={"prompt": [5] * (CONTEXT + 1)}, headers=caller.headers)
    assert answer.status_code == 400
    gateway, [executor], inner = tree(collector, caller, 2)
    assert not inner[executor.span_id], "it never came to the engine"
    assert gateway.attributes["error.type"] == executor.attributes["error.type"] == "context_length_exceeded"
    assert gateway.attributes["http.response.status_code"] == 400
    assert (gateway.failed, executor.failed) == (False, True)
    assert executor.message == "context_length_exceeded", "the error's own message may quote the request"


def test_a_stream_whose_client_left_ends_its_spans_and_says_nothing(
    client: httpx.Client, collector: Collector, said: list[Event]
) -> None:
    """OpenTelemetry would otherwise log a traceback for each."""
    caller, before = Caller(), len(said)
    long = CONTEXT - 24  # so that it cannot end before the client has left, however slow that one is
    body = {"prompt": "In a village", "max_new_tokens": long, "min_new_tokens": long, "n": 64}
    with client.stream("POST", "/generate_stream", json=body, headers=caller.headers) as answer:
        next(answer.iter_lines())
    gateway, [executor], inner = tree(collector, caller, 2)
    assert not inner[executor.span_id]
    assert (gateway.attributes["error.type"], executor.attributes["error.type"]) == ("cut_off", "cancelled")
    assert not gateway.failed
    assert not executor.failed
    assert [event.message for event in said[before:]] == []


def test_a_request_without_a_key_has_a_span_and_no_span_contains_a_key(server: Server, collector: Collector) -> None:
    caller = Caller()
    sent = {**caller.headers, "Authorization": "Bearer a-guess"}
    assert httpx.post(f"{server.http_url}/generate", json={"prompt": "x"}, headers=sent).status_code == 401
    gateway, [], _ = tree(collector, caller, 1)
    assert gateway.attributes["error.type"] == "invalid_api_key"
    assert "rungpt.key" not in gateway.attributes
    told = json.dumps([[span.attributes, span.events] for span in collector.spans])
    assert "a-guess" not in told
    assert KEYS["alice"] not in told


def test_without_a_trace_of_the_client_one_begins_and_what_is_not_sampled_is_not_sent(
    client: httpx.Client, collector: Collector
) -> None:
    unsampled, request_id = Caller(sampled=False), secrets.token_hex(8)
    for headers in (unsampled.headers, {"X-Request-Id": request_id}):
        assert client.post("/embed", json={"texts": ["In a village"]}, headers=headers).status_code == 200
    wanted = ("rungpt.client_request_id", request_id)
    collector.wait_for(lambda spans: any(wanted in span.attributes.items() for span in spans))
    [gateway] = [span for span in collector.spans if wanted in span.attributes.items()]
    assert gateway.parent_id == ""
    collector.wait_for(lambda _: len(collector.trace(gateway.trace_id)) == 4)
    names = [span.name.split()[0] for span in collector.trace(gateway.trace_id)]
    assert sorted(names) == ["POST", "embeddings", "prefill", "queue"]
    assert not collector.trace(unsampled.trace_id)


def test_neither_probes_nor_pages_nor_jinas_own_spans_are_sent(client: httpx.Client, collector: Collector) -> None:
    """Each replica is probed twice a second: a collector would hold little else."""
    for path in ("/metrics", "/openapi.json", "/health", "/nowhere"):
        client.get(path)
    caller = Caller()
    client.post("/generate", json={"prompt": "x", **FIELDS}, headers=caller.headers)
    tree(collector, caller, 5)
    known = ("POST /", "gRPC /", "text_completion ", "chat ", "embeddings ", *PHASES)
    assert all(span.name.startswith(known) for span in collector.spans), {span.name for span in collector.spans}


def ask(server: Server) -> None:
    answer = httpx.post(f"{server.http_url}/generate", json={"prompt": "In a village", **FIELDS}, timeout=60)
    assert answer.status_code == 200, answer.text


def test_the_last_spans_arrive_when_the_server_ends(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # not before the end
    with collecting() as collector:
        with serving(model, collector.endpoint, []) as server:
            ask(server)
            assert not collector.spans
        assert len(collector.wait_for(lambda spans: len(spans) >= 5)) == 5


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)  # between two polls of the condition


def test_jinas_own_pods_send_the_same_spans(model: Path, tmp_path: Path, free_ports: Any) -> None:
    """`jina flow` has the same names of options, but not our pods and their changes."""
    grpc_port, http_port = free_ports(2)
    caller, said = Caller(), tmp_path / "log"
    with collecting() as collector:
        config = a_config(model, collector.endpoint, grpc_port=grpc_port, http_port=http_port)
        (tmp_path / "flow.yml").write_text(render_flow(config))
        with said.open("wb") as log, jina_flow(tmp_path / "flow.yml", log) as process:
            wait_until(lambda: process.poll() is not None or answers_ok("127.0.0.1", http_port, "/ready"))
            body = {"prompt": "In a village", **FIELDS}
            url = f"http://127.0.0.1:{http_port}/generate_stream"
            assert httpx.post(url, json=body, headers=caller.headers).status_code == 200, said.read_text()
            gateway, [executor], inner = tree(collector, caller, 5)
            check_phases(gateway, executor, inner[executor.span_id])
            assert len(collector.spans) == 5
            wait_until(lambda: "ready to serve" in said.read_text())  # Jina may hang if it is ended before
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


@contextmanager
def jina_flow(file: Path, log: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `jina flow --uses FILE`; no process of it is left after the block."""
    code = (
        "import sys, run_gpt.process._jina; from jina_cli import main; "
        "sys.argv[:1] = ['jina', 'flow', '--uses']; main()"
    )
    env = {**os.environ, "JINA_LOG_LEVEL": "WARNING", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=log, stderr=log, env=env)
    family: list[psutil.Process] = []
    try:
        yield process
    finally:
        if process.poll() is None:
            family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for left in family:
            left.kill()
        process.wait()


@contextmanager
def nobody(listens: bool) -> Iterator[str]:
    """Yield an endpoint where nothing listens, or where a listener stays silent."""
    with ExitStack() as sockets:
        sock = sockets.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        if listens:
            sock.listen()
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize("listens", [False, True], ids=["gone", "silent"])
def test_an_unreachable_collector_neither_fails_requests_nor_delays_the_end(
    model: Path, listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    said: list[Event] = []
    with nobody(listens) as endpoint:
        with serving(model, endpoint, said) as server:
            for _ in range(5):
                ask(server)
            began = time.monotonic()
        seconds = time.monotonic() - began
    assert seconds < STOP_SECONDS
    assert [event.message for event in said if event.kind in ("killed", "died")] == []
    assert any("did not take the last spans" in event.message for event in said), "what is lost is not said"
