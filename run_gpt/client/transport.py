"""`Transport`: the protocol of both transports (gRPC and HTTP), reading of answers, and texts of errors."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

from pydantic import ValidationError

from run_gpt.api.answers import Answer, Body
from run_gpt.api.request import AnyRequest
from run_gpt.client.endpoint import Endpoint
from run_gpt.errors import DeadlineExceeded, InternalError, Unavailable, error_from_dict
from run_gpt.process import request_ids


class Transport(Protocol):
    """Transport of requests to a server. Its calls raise only RequestErrors, and may come from any thread's event loop.

    `request_id` names the request; an error has the name that the server gave back, else this one.
    """

    async def answer(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> Body:
        """Return the whole answer."""

    def stream(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> AsyncIterator[Body]:
        """Yield the events as they come; closing the iterator ends the request at once."""

    async def aclose(self) -> None:
        """Close all connections."""


def read_answer(kind: type[Body], fields: Any, endpoint: Endpoint) -> Body:
    """Return the answer of this kind in `fields`, or raise the error in them; InternalError if they hold neither."""
    if not isinstance(fields, dict):
        raise not_rungpt(endpoint, f"{fields!r:.80}")
    if isinstance(error := fields.get("error"), dict):
        raise error_from_dict(error)
    if issubclass(kind, Answer) and fields.get("model") is None:
        raise InternalError(f"{endpoint} gave an empty answer")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise not_rungpt(endpoint, str(error).replace("\n", " ")[:200]) from error


def sent_id(request_id: str | None) -> dict[str, str]:
    """Return the headers or metadata that name a request. Raises InvalidRequest."""
    return {} if request_id is None else {request_ids.METADATA: request_ids.check(request_id, "request_id")}


async def complete(events: AsyncIterator[Answer], sequences: int) -> AsyncIterator[Answer]:
    """Yield the same events. Raises InternalError if they end before each of the `sequences` choices has ended."""
    ended: set[int] = set()
    async with aclosing(cast("Any", events)):
        async for event in events:
            ended.update(choice.index for choice in cast("Any", event).choices if choice.finish_reason)
            yield event
    if len(ended) < sequences:
        raise InternalError("the stream broke off before the answer was complete")


def not_rungpt(endpoint: Endpoint, what: str) -> InternalError:
    """Return the error for an answer that does not come from a RunGPT server."""
    return InternalError(f"{endpoint} does not answer as a RunGPT server does: {what}")


def unreachable(endpoint: Endpoint, why: str) -> Unavailable:
    """Return the error for a server that does not answer."""
    return Unavailable(f"no connection to {endpoint} ({why}): is `rungpt serve` running there?")


def broken(endpoint: Endpoint, why: str) -> Unavailable:
    """Return the error for a connection that ended before the answer was complete."""
    return Unavailable(f"the connection to {endpoint} broke before the answer was complete ({why})")


def too_late(endpoint: Endpoint, timeout: float | None) -> DeadlineExceeded:
    """Return the error for our own deadline, which has passed."""
    return DeadlineExceeded(f"{endpoint} gave no complete answer within {timeout:g} s")
