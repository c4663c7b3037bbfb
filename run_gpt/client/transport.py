"""`Transport`: what both ways to a server have in common: the protocol, the answers' reading, the errors' wording."""

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
    """A way to a server. Its calls raise RequestErrors only, and may come from any thread's event loop.

    `request_id` names the request; an error has the name that the server gave back, else this one.
    """

    async def answer(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> Body:
        """The whole answer."""

    def stream(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> AsyncIterator[Body]:
        """The events as they come; closing the iterator ends the request at once."""

    async def aclose(self) -> None:
        """Close all connections."""


# Of each kind of request: its path, the same on both doors, and what answers it.
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
# The same of those that are answered event by event.
_STREAMS: dict[type[AnyRequest], tuple[str, type[Body]]] = {
    GenerateRequest: ("/generate_stream", Completion),
    ChatRequest: ("/chat_stream", ChatCompletionChunk),
    LoadModelRequest: ("/models/load", ModelState),
}


def route(request: AnyRequest, *, stream: bool) -> str:
    """The path that answers the request."""
    return (_STREAMS if stream else _ANSWERS)[type(request)][0]


def read_answer(request: AnyRequest, fields: Any, endpoint: Endpoint, *, stream: bool) -> Body:
    """The answer that the server's fields make. Raises the error that they hold, InternalError if they hold neither."""
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
    """What is sent to name a request, as headers or metadata. Raises InvalidRequest."""
    return {} if request_id is None else {request_ids.METADATA: request_ids.check(request_id, "request_id")}


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
