"""Without these tests, a server could lose its traces, send them elsewhere, or not start without an endpoint."""

import pytest
import yaml

from run_gpt.config import ServeConfig
from run_gpt.errors import SetupError
from run_gpt.flows.pod import executor_arguments, gateway_arguments
from run_gpt.flows.render import render_flow
from run_gpt.flows.traces import trace_options


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        ("127.0.0.1:4317", "http://127.0.0.1", 4317),
        ("otel-collector.observability.svc:4317", "http://otel-collector.observability.svc", 4317),
        ("http://jaeger:4317/", "http://jaeger", 4317),
        ("https://api.example.com:443", "https://api.example.com", 443),
        ("[::1]:4317", "http://[::1]", 4317),
    ],
)
def test_an_endpoint_is_jinas_host_and_port(endpoint: str, host: str, port: int) -> None:
    assert trace_options(endpoint) == {"tracing": True, "traces_exporter_host": host, "traces_exporter_port": port}


NONE = ("", "jaeger", "jaeger:", ":4317", "jaeger:0", "jaeger:65536", "jaeger:x", "::1:4317")
OTHER = ("grpc://jaeger:4317", "http://key@jaeger:4317", "http://jaeger:4317/v1/traces")


@pytest.mark.parametrize("endpoint", [*NONE, *OTHER])
def test_what_is_no_endpoint_is_refused_before_anything_starts(endpoint: str) -> None:
    with pytest.raises(SetupError, match=r"--trace-endpoint .*: write HOST:PORT of a collector"):
        render_flow(ServeConfig(trace_endpoint=endpoint))


def test_gateway_and_executors_are_given_it_as_jina_would_give_it() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig(trace_endpoint="jaeger:4317"), worker_ports=[4001]))
    assert "trace_endpoint" not in flow["gateway"]["uses"].get("with", {})
    given = ["--tracing", "--traces-exporter-host", "http://jaeger", "--traces-exporter-port", "4317"]
    assert gateway_arguments(flow)[-5:] == executor_arguments(flow, 0)[-5:] == given


def test_without_one_nothing_is_rendered_and_nothing_given() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig(), worker_ports=[4001]))
    assert "with" not in flow
    assert "--tracing" not in [*gateway_arguments(flow), *executor_arguments(flow, 0)]
