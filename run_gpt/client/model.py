"""`Model`: the calls of a language model, answered by a server."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar, cast

from run_gpt.api.answers import Answer
from run_gpt.api.language_model import LanguageModel
from run_gpt.api.loop_thread import result
from run_gpt.api.models import LoadModelRequest, ModelState, UnloadModelRequest
from run_gpt.api.openai import models
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import Request
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.transport import Transport, complete
from run_gpt.errors import InternalError, InvalidRequest

Named = TypeVar("Named", bound=AnyRequest)
OnProgress = Callable[[str, int, int | None], None]
"""Function that is called with the step, the bytes done and the bytes in all (None: not known)."""


class Model(LanguageModel):
    """A model behind a server. It connects on first use, and may be used from any thread and event loop.

    Beside the errors of LanguageModel, a call raises Unavailable if the server cannot be reached.
    """

    def __init__(self, endpoint: Endpoint, token: str | None, model_name: str | None, ca: Path | None = None):
        self.name = model_name
        self.endpoint = str(endpoint)
        self._transport = _transport(endpoint, token, ca)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, endpoint={self.endpoint!r})"

    async def aload(self, *, on_progress: OnProgress | None = None, timeout: float | None = None) -> ModelState:
        """Load this model into the server's memory, and return when it is there. A request loads it, too.

        `on_progress` is called with the progress. If this call ends early, such as with DeadlineExceeded after
        `timeout` seconds, the load goes on. Raises InvalidRequest for a model without a name, ModelNotFound, and
        Unavailable, with the reason, if the model cannot be loaded.
        """
        self._check_open()
        request = LoadModelRequest(model=self._known_name())
        state: ModelState | None = None
        async with aclosing(cast("Any", self._transport.stream(request, timeout, None))) as states:
            async for state in states:
                if on_progress is not None and state.state == "loading":
                    total = None if state.total is None else int(state.total)
                    on_progress(state.step or f"Loading {self.name}", int(state.done or 0), total)
        if state is None or state.state != "loaded":
            raise InternalError(f"the stream broke off before the model {self.name} was loaded")
        return state

    async def aunload(self, *, timeout: float | None = None) -> ModelState:
        """Unload this model from the server's memory; the next request for it loads it again.

        Raises InvalidRequest for a model without a name, ModelNotFound, and Unavailable while requests use it.
        """
        self._check_open()
        return cast("ModelState", await self._answer(UnloadModelRequest(model=self._known_name()), timeout))

    def load(self, *, on_progress: OnProgress | None = None, timeout: float | None = None) -> ModelState:
        """See `aload`. `on_progress` is called in another thread."""
        return result(self._submit(self.aload(on_progress=on_progress, timeout=timeout)))

    def unload(self, *, timeout: float | None = None) -> ModelState:
        """See `aunload`."""
        return result(self._submit(self.aunload(timeout=timeout)))

    async def aclose(self) -> None:
        """Close the connections; running requests end with Unavailable."""
        self._closed = True
        await self._transport.aclose()

    async def _answer(self, request: AnyRequest, timeout: float | None, request_id: str | None = None) -> Answer:
        return cast("Answer", await self._transport.answer(self._named(request), timeout, request_id))

    def _stream(self, request: Request, timeout: float | None, request_id: str | None = None) -> AsyncIterator[Answer]:
        events = cast("AsyncIterator[Answer]", self._transport.stream(self._named(request), timeout, request_id))
        return complete(events, request.sequences)

    async def _served(self, timeout: float | None) -> list[models.Model]:
        """Return every model of the server, for `Client`."""
        request = models.ListModelsRequest.parse({})
        return cast("models.ModelList", await self._transport.answer(request, timeout, None)).data

    def _known_name(self) -> str:
        if not self.name:
            raise InvalidRequest("model_name: which model? Give get_model its name", param="model_name")
        return self.name

    def _named(self, request: Named) -> Named:
        if self.name is None or request.model is not None:
            return request
        return request.model_copy(update={"model": self.name})


def _transport(endpoint: Endpoint, token: str | None, ca: Path | None) -> Transport:
    if endpoint.is_grpc:  # imported late: a program uses only one of the two transports
        from run_gpt.client.grpc_transport import GrpcTransport

        return GrpcTransport(endpoint, token, ca)
    from run_gpt.client.http_transport import HttpTransport

    return HttpTransport(endpoint, token, ca)
