"""Makes the span of each request of the ports. It imports OpenTelemetry: import it only where there are traces.

A span begins before its request has its record; at the end the record gives the outcome.
"""

from collections.abc import Mapping
from typing import Any

import grpc
from opentelemetry.context import Context
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from run_gpt.errors import error_from_dict
from run_gpt.gateway.metrics import CUT_OFF, OTHER, endpoint_label, error_code
from run_gpt.gateway.record import Record
from run_gpt.gateway.request_span import RequestSpan, current
from run_gpt.process.tracing import tracer_of

TRACED_METHODS = ("/jina.JinaRPC/", "/jina.JinaSingleDataRequestRPC/", "/jina.JinaSingleDocumentRequestRPC/")
"""Prefixes of the gRPC services with spans; in HTTP too, only the endpoints of both ports have spans."""


class Tracing:
    """Maker of a span for each request of both ports; it continues the trace that the client's `traceparent` names."""

    def __init__(self, provider: Any):
        """Take the `provider` that Jina has made."""
        self._tracer = tracer_of(provider)

    def http(self, app: ASGIApp) -> ASGIApp:
        """Wrap the HTTP app, in which the request's record is made, so that its span begins first."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            endpoint = endpoint_label(scope["path"]) if scope["type"] == "http" else OTHER
            if endpoint != OTHER and (method := scope["method"]) in ("GET", "POST"):
                about = {"http.request.method": method, "http.route": endpoint}
                self._begin(f"{method} {endpoint}", about, Headers(scope=scope))
            await app(scope, receive, send)

        return traced

    def interceptor(self) -> Any:
        """Return the same for the gRPC server: an interceptor to put before the one that makes the record."""
        return _Interceptor(self._begin)

    def _begin(self, name: str, about: Mapping[str, str], headers: Mapping[str, str]) -> None:
        span = self._tracer.start_span(name, extract(headers), SpanKind.SERVER, about)
        carried: dict[str, str] = {}
        inject(carried, set_span_in_context(span, Context()))  # not the baggage that the client sent
        current.set(RequestSpan(span, carried))

    def end(self, record: Record, status: str) -> None:
        """End the span of a request that has ended. `status`: HTTP's number, or gRPC's name."""
        if (request := current.get()) is None:
            return
        current.set(None)
        span, code = request.span, error_code(record, status)
        attributes = {
            "rungpt.endpoint": endpoint_label(record.endpoint or record.route),
            "rungpt.request_id": record.request_id,
            "rungpt.client_request_id": record.client_id,
            "rungpt.key": record.key,
            "error.type": code,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if record.method != "gRPC":
            if status.isdecimal():
                span.set_attribute("http.response.status_code", int(status))
        else:
            span.set_attribute("rpc.response.status_code", status)
            if record.endpoint is not None:
                span.update_name(f"gRPC {record.endpoint}")
        if code is not None and is_our_fault(code):
            span.set_status(StatusCode.ERROR, code)
        span.end()


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, begin: Any):
        self._begin = begin

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        if details.method.startswith(TRACED_METHODS):
            headers = {name: value for name, value in details.invocation_metadata or () if isinstance(value, str)}
            method = details.method.removeprefix("/")
            self._begin(method, {"rpc.system.name": "grpc", "rpc.method": method}, headers)
        return await continuation(details)


def is_our_fault(code: str) -> bool:
    """Return True when an error with this code is the server's and not the client's."""
    return code != CUT_OFF and error_from_dict({"code": code}).http_status >= 500
