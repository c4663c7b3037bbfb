"""`Model`: the calls of a language model, answered by a server."""

from collections.abc import AsyncIterator
from typing import TypeVar

from run_gpt.api.answers import Answer
from run_gpt.api.language_model import LanguageModel
from run_gpt.api.schema import AnyRequest, Request
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.transport import Transport, complete

Named = TypeVar("Named", bound=AnyRequest)


class Model(LanguageModel):
    """A model behind a server. It connects when it is first used, and may be used from any thread and event loop.

    Beside the errors of LanguageModel, a call raises Unavailable if the server cannot be reached.
    """

    def __init__(self, endpoint: Endpoint, token: str | None, model_name: str | None):
        self.name = model_name
        self.endpoint = str(endpoint)
        self._transport = _transport(endpoint, token)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, endpoint={self.endpoint!r})"

    async def aclose(self) -> None:
        """Close the connections; running requests end with Unavailable."""
        self._closed = True
        await self._transport.aclose()

    async def _answer(self, request: AnyRequest, timeout: float | None, request_id: str | None = None) -> Answer:
        return await self._transport.answer(self._named(request), timeout, request_id)

    def _stream(self, request: Request, timeout: float | None, request_id: str | None = None) -> AsyncIterator[Answer]:
        return complete(self._transport.stream(self._named(request), timeout, request_id), request.sequences)

    def _named(self, request: Named) -> Named:
        if self.name is None or request.model is not None:
            return request
        return request.model_copy(update={"model": self.name})


def _transport(endpoint: Endpoint, token: str | None) -> Transport:
    if endpoint.is_grpc:  # imported late: a program uses one of the two
        from run_gpt.client.grpc_transport import GrpcTransport

        return GrpcTransport(endpoint, token)
    from run_gpt.client.http_transport import HttpTransport

    return HttpTransport(endpoint, token)
