"""A collector of traces, for tests: a real OTLP endpoint over gRPC, which keeps all spans."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Span:
    """A span as it arrived; times in seconds since 1970."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    """Id of the parent span; empty for the first span of a trace."""
    name: str
    kind: int
    start: float
    end: float
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    failed: bool
    message: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Service that keeps all spans, in the order of their arrival."""

    port: int = 0
    spans: list[Span] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def endpoint(self) -> str:
        return f"{HOST}:{self.port}"

    def Export(self, request: Any, context: Any) -> Any:
        """See OTLP's TraceService."""
        with self._arrived:
            for resource in request.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                self.spans += [_span(service, span) for scope in resource.scope_spans for span in scope.spans]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace that have arrived."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def wait_for(self, enough: Callable[[list[Span]], Any], seconds: float = 20.0) -> list[Span]:
        """Return all spans, once there are enough of them. Fails after `seconds`."""
        deadline = time.monotonic() + seconds
        with self._arrived:
            while not enough(self.spans):
                assert self._arrived.wait(deadline - time.monotonic()), f"only these arrived: {self.spans}"
            return list(self.spans)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Yield a collector on a free port of loopback."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


def _span(service: str, span: Any) -> Span:
    return Span(
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _attributes(span.attributes),
        [(event.name, _attributes(event.attributes)) for event in span.events],
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.status.message,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    content = getattr(value, kind)
    return [_value(item) for item in content.values] if kind == "array_value" else content
