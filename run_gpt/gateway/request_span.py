"""The span of the running request, for the code that works for the request: the pool and its replicas."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from run_gpt.errors import RequestError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from run_gpt.gateway.replica import Replica


@dataclass(frozen=True)
class RequestSpan:
    """A span, and the headers that make other spans its children."""

    span: "Span"
    carried: Mapping[str, str]
    """Headers that a request to an executor carries, so that the executor's span is a child of this one."""


current: ContextVar[RequestSpan | None] = ContextVar("request_span", default=None)
"""Span of the request that this task works for; None without tracing."""


def carried() -> Mapping[str, str]:
    """Return the headers that a request to an executor carries for the request of this task."""
    request = current.get()
    return {} if request is None else request.carried


def note_attempt(replica: "Replica", failure: RequestError | None) -> None:
    """Note that the request of this task goes to this replica. `failure`: the error of the replica before, if any."""
    if (request := current.get()) is None:
        return
    request.span.set_attribute("rungpt.replica", replica.address)
    if replica.model is not None:
        request.span.set_attribute("gen_ai.request.model", replica.model)
    if failure is not None:
        request.span.add_event("retry", {"rungpt.replica": replica.address, "error.type": failure.code})
