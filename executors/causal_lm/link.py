"""The executor's endpoints on the inner wire: native requests in, answers and pieces out."""

from collections.abc import Awaitable, Callable
from typing import cast

from pydantic import BaseModel, ValidationError

from run_gpt.api.adapters import ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest, Request, invalid_request
from run_gpt.api.tokens import DetokenizeRequest, TokenizeRequest
from run_gpt.errors import UnknownEndpoint
from run_gpt.executors.causal_lm.service import ModelService
from run_gpt.link.frames import Start
from run_gpt.link.serving import Reply
from run_gpt.process import request_ids

WHOLE: dict[str, type[AnyRequest]] = {
    "/generate": GenerateRequest,
    "/chat": ChatRequest,
    "/embed": EmbedRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/adapters": ListAdaptersRequest,
    "/adapters/load": LoadAdapterRequest,
    "/adapters/unload": UnloadAdapterRequest,
}
"""Types of requests that are answered as a whole, by their paths."""
STREAMED: dict[str, type[AnyRequest]] = {"/generate_stream": GenerateRequest, "/chat_stream": ChatRequest}
"""Types of requests that are answered piece by piece, by their paths."""


class LinkEndpoints:
    """Handler of requests over the inner wire, which `service` answers (see link.serving.Handle)."""

    def __init__(self, service: ModelService):
        self._service = service
        self._others: dict[str, Callable[[Reply], Awaitable[None]]] = {
            "/status": self._status,
            "/metrics": self._metrics,
            "/load": self._load,
            "/unload": self._unload,
        }

    async def __call__(self, start: Start, reply: Reply) -> None:
        """Answer a request. Raises a RequestError."""
        request_ids.current.set(start.request_id)
        if (kind := STREAMED.get(start.path)) is not None:
            request = cast("Request", _read(kind, start.body))
            await self._service.stream(request, reply.put, start.trace)
        elif (kind := WHOLE.get(start.path)) is not None:
            answer = await self._service.answer(_read(kind, start.body), start.trace)
            reply.put(answer.to_json().encode())
        elif (answer_other := self._others.get(start.path)) is not None:
            await answer_other(reply)
        else:
            raise UnknownEndpoint(f"an executor has no endpoint {start.path!r}")

    async def _status(self, reply: Reply) -> None:
        reply.put(_json(self._service.status()))

    async def _metrics(self, reply: Reply) -> None:
        reply.put(self._service.host.metrics().encode())

    async def _load(self, reply: Reply) -> None:
        async for status in self._service.load():
            reply.put(_json(status))

    async def _unload(self, reply: Reply) -> None:
        reply.put(_json(await self._service.unload()))


def _read(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """Read a request that its gateway has checked. Raises InvalidRequest for one that this version does not know."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from None


def _json(body: BaseModel) -> bytes:
    return body.model_dump_json().encode()
