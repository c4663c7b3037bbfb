"""`Transport`: the protocol of both transports (gRPC and HTTP), reading of answers, and texts of errors."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

from pydantic import ValidationError

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer, Body, ChatCompletion, ChatCompletionChunk, Completion
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.models import LoadModelRequest, ModelState, UnloadModelRequest
from run_gpt.api.openai.models import ListModelsRequest, ModelList
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest
from run_gpt.api.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens
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


# Path of each kind of request, the same over gRPC and HTTP, and the kind of its answer.
_ANSWERS: dict[type[AnyRequest], tuple[str, type[Body]]] = {
    GenerateRequest: ("/generate", Completion),
    ChatRequest: ("/chat", ChatCompletion),
    EmbedRequest: ("/embed", Embeddings),
    TokenizeRequest: ("/tokenize", Tokens),
    DetokenizeRequest: ("/detokenize", DetokenizedText),
    ListAdaptersRequest: ("/adapters", AdapterList),
    LoadAdapterRequest: ("/adapters/load", AdapterList),
    UnloadAdapterRequest: ("/adapters/unload", AdapterList),
    UnloadModelRequest: ("/models/unload", ModelState),
    ListModelsRequest: ("/v1/models", ModelList),
}
# The same for requests that are answered event by event.
_STREAMS: dict[type[AnyRequest], tuple[str, type[Body]]] = {
    GenerateRequest: ("/generate_stream", Completion),
    ChatRequest: ("/chat_stream", ChatCompletionChunk),
    LoadModelRequest: ("/models/load", ModelState),
}


def route(request: AnyRequest, *, stream: bool) -> str:
    """Return the path that answers the request."""
    return (_STREAMS if stream else _ANSWERS)[type(request)][0]


def read_answer(request: AnyRequest, fields: Any, endpoint: Endpoint, *, stream: bool) -> Body:
    """Return the answer in the server's fields, or raise the error in them; InternalError if they hold neither."""
    if not isinstance(fields, dict):
        raise not_rungpt(endpoint, f"{fields!r:.80}")
    if isinstance(error := fields.get("error"), dict):
        raise error_from_dict(error)
    _, kind = (_STREAMS if stream else _ANSWERS)[type(request)]
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
