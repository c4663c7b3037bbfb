"""`Transport`: what both ways to a server have in common: the protocol, the answers' reading, the errors' wording."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

from pydantic import ValidationError

from run_gpt.api.schema import (
    Answer,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Completion,
    Request,
)
from run_gpt.client.endpoint import Endpoint
from run_gpt.errors import DeadlineExceeded, InternalError, Unavailable, error_from_dict


class Transport(Protocol):
    """A way to a server. Its calls raise RequestErrors only, and may come from any thread's event loop."""

    async def answer(self, request: Request, timeout: float | None) -> Answer:
        """The whole answer."""

    def stream(self, request: Request, timeout: float | None) -> AsyncIterator[Answer]:
        """The events as they come; closing the iterator ends the request at once."""

    async def aclose(self) -> None:
        """Close all connections."""


def route(request: Request, *, stream: bool) -> str:
    """The path that answers the request, the same on both doors."""
    path = "/chat" if isinstance(request, ChatRequest) else "/generate"
    return f"{path}_stream" if stream else path


def read_answer(request: Request, fields: Any, endpoint: Endpoint, *, stream: bool) -> Answer:
    """The answer that the server's fields make. Raises the error that they hold, InternalError if they hold neither."""
    if not isinstance(fields, dict):
        raise not_rungpt(endpoint, f"{fields!r:.80}")
    if isinstance(error := fields.get("error"), dict):
        raise error_from_dict(error)
    if fields.get("choices") is None:
        raise InternalError(f"{endpoint} gave an empty answer")
    model: type[Answer] = Completion
    if isinstance(request, ChatRequest):
        model = ChatCompletionChunk if stream else ChatCompletion
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise not_rungpt(endpoint, str(error).replace("\n", " ")[:200]) from error


async def complete(events: AsyncIterator[Answer], sequences: int) -> AsyncIterator[Answer]:
    """The same events. Raises InternalError if they end before each of the `sequences` choices has ended."""
    ended: set[int] = set()
    async with aclosing(cast("Any", events)):
        async for event in events:
            ended.update(choice.index for choice in cast("Any", event).choices if choice.finish_reason)
            yield event
    if len(ended) < sequences:
        raise InternalError("the stream broke off before the answer was complete")


def not_rungpt(endpoint: Endpoint, what: str) -> InternalError:
    """Something answered that does not speak as RunGPT does."""
    return InternalError(f"{endpoint} does not answer as a RunGPT server does: {what}")


def unreachable(endpoint: Endpoint, why: str) -> Unavailable:
    """Nothing answered."""
    return Unavailable(f"no connection to {endpoint} ({why}): is `rungpt serve` running there?")


def broken(endpoint: Endpoint, why: str) -> Unavailable:
    """The connection ended before the answer did."""
    return Unavailable(f"the connection to {endpoint} broke before the answer was complete ({why})")


def too_late(endpoint: Endpoint, timeout: float | None) -> DeadlineExceeded:
    """Our own deadline has passed."""
    return DeadlineExceeded(f"{endpoint} gave no complete answer within {timeout:g} s")
