"""`CausalLMExecutor`: hosts one model as a Jina Executor; documents in, documents out."""

import logging
import os
import signal
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from docarray import BaseDoc, DocList
from jina import Executor, requests

from run_gpt.api import documents
from run_gpt.api.answers import Metrics, Status
from run_gpt.api.documents import WireError, document_class
from run_gpt.api.endpoints import MODEL_ENDPOINTS, Endpoint
from run_gpt.api.models import LoadModelRequest, UnloadModelRequest
from run_gpt.api.together import together
from run_gpt.config import AdminConfig, EngineConfig, HostConfig, ModelConfig
from run_gpt.errors import InternalError, RequestError, SetupError
from run_gpt.executors.causal_lm.host import Host
from run_gpt.executors.causal_lm.jina_server import add_rpc_methods
from run_gpt.executors.causal_lm.link import LinkEndpoints
from run_gpt.executors.causal_lm.service import ModelService
from run_gpt.executors.causal_lm.spans import Spans
from run_gpt.link.frames import METHOD
from run_gpt.link.serving import LinkServer
from run_gpt.process import request_ids

if TYPE_CHECKING:
    from run_gpt.local.model import Model

log = logging.getLogger(__name__)

add_rpc_methods()

LoadModelRequestDocument, UnloadModelRequestDocument = map(document_class, (LoadModelRequest, UnloadModelRequest))
StatusDocument, MetricsDocument = map(document_class, (Status, Metrics))

_REPORT_SECONDS = 0.5
"""Longest time that the last line of a hanging process may take."""

# Arguments that Jina itself passes to an Executor's constructor.
_JINAS = {"metas", "requests", "runtime_args", "workspace", "dynamic_batching"}


class CausalLMExecutor(Executor):  # type: ignore[misc]
    """One (possibly sharded) causal language model behind the endpoints of a model, `/status` and `/metrics`.

    Takes the fields of ModelConfig, EngineConfig, HostConfig and AdminConfig as keyword arguments, and loads the model
    before it serves, unless `preload` is false: then `/load` does. Raises SetupError for a setting it does not know or
    a model that cannot be loaded.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{name: settings.pop(name) for name in _JINAS & settings.keys()})
        model_config, engine_config = ModelConfig.take(settings), EngineConfig.take(settings)
        host_config, admin = HostConfig.take(settings), AdminConfig.take(settings)
        if settings:
            raise SetupError(f"CausalLMExecutor has no setting {', '.join(map(repr, settings))}")
        self.failed = False
        """True when the engine has died; the process then ends."""
        self.host = Host(model_config, engine_config, host_config, self._fail, self._end_hung)
        self.service = ModelService(self.host, Spans(self.tracer_provider), admin)
        self._link = LinkServer(LinkEndpoints(self.service))
        self.rpc_methods = {METHOD: self._link.handler}
        """gRPC methods beside Jina's (see jina_server)."""

    @property
    def model(self) -> "Model":
        """The loaded model. Raises Unavailable."""
        return self.host.model

    @requests(on="/status")
    async def status(self, **_: Any) -> DocList[StatusDocument]:
        """Return the status of the model and its engine."""
        return DocList[StatusDocument]([_status_document(self.service.status())])

    @requests(on="/load")
    async def load(self, doc: LoadModelRequestDocument, **_: Any) -> StatusDocument:  # type: ignore[valid-type]
        """Load the model; report the progress, and in the last document the result."""
        async for status in self.service.load():
            yield _status_document(status)

    @requests(on="/unload")
    async def unload(self, docs: DocList[UnloadModelRequestDocument], **_: Any) -> DocList[StatusDocument]:
        """Free the model's memory. Raises WireError while requests run."""
        try:
            return DocList[StatusDocument]([_status_document(await self.service.unload())])
        except RequestError as error:
            raise WireError(error) from error

    @requests(on="/metrics")
    async def metrics(self, **_: Any) -> DocList[MetricsDocument]:
        """Return the engine's metrics."""
        return DocList[MetricsDocument]([MetricsDocument(text=self.host.metrics())])

    async def drain(self, seconds: float) -> None:
        """Drain as ModelService does; then end the calls of gateways, which have all their answers."""
        await self.service.drain(seconds)
        await self._link.end()

    def close(self) -> None:
        """End the engine; requests that still run end with Unavailable."""
        self.host.close()
        super().close()

    def _fail(self) -> None:
        """End this process, because its engine is dead, so that its supervisor starts a new one."""
        log.error("the engine is dead, this process ends")
        self.failed = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _end_hung(self, reason: str) -> None:
        """End this process, whose engine hangs, at once: an orderly end would wait for the engine's thread.

        Gateways notice it by their broken connections, and ask another replica or end the requests with an error.
        """

        def report() -> None:
            log.critical("%s: this process ends", reason)
            logging.shutdown()

        reporting = threading.Thread(target=report, daemon=True)
        reporting.start()
        reporting.join(_REPORT_SECONDS)  # nothing may read the log
        os._exit(1)


def _whole(endpoint: Endpoint) -> Any:
    """Return the method that answers documents, which run together. It raises WireError."""
    asked = DocList[document_class(endpoint.request)]
    answers = DocList[document_class(endpoint.body(stream=False))]

    async def answer(self: CausalLMExecutor, docs: DocList[BaseDoc], **_: Any) -> DocList[BaseDoc]:
        async def one(doc: BaseDoc) -> BaseDoc:
            request = documents.document_to_request(endpoint.request, doc)
            return documents.answer_to_document(await self.service.answer(request))

        try:
            return answers(await together([one(doc) for doc in docs]))
        except Exception as error:
            raise WireError(_request_error(error)) from error

    return requests(on=endpoint.path, request_schema=asked, response_schema=answers)(answer)


def _streamed(endpoint: Endpoint) -> Any:
    """Return the method that answers a document event by event; an error is the last document."""
    asked, kind = document_class(endpoint.request), endpoint.body(stream=True)

    async def answer(self: CausalLMExecutor, doc: BaseDoc, **_: Any) -> BaseDoc:
        try:
            request = cast("Any", documents.document_to_request(endpoint.request, doc, stream=True))
            async with aclosing(cast("Any", self.service.events(request))) as events:
                async for event in events:
                    yield documents.answer_to_document(event)
        except Exception as error:
            yield documents.error_to_document(kind, _request_error(error))

    schema = document_class(kind)
    return requests(on=endpoint.path, request_schema=asked, response_schema=schema)(answer)


def _add_endpoint(endpoint: Endpoint) -> None:
    """Give CausalLMExecutor a method for an endpoint, as if the class had it; Jina knows methods by their names."""
    method = _whole(endpoint) if endpoint.event is None else _streamed(endpoint)
    method.fn.__name__ = endpoint.path.strip("/").replace("/", "_")
    method.__set_name__(CausalLMExecutor, method.fn.__name__)


for _endpoint in MODEL_ENDPOINTS:
    _add_endpoint(_endpoint)


def _status_document(status: Status) -> BaseDoc:
    return StatusDocument(**status.model_dump())


def _request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    log.error("the request %s failed", request_ids.current.get() or "without an id", exc_info=error)
    return InternalError(f"the request failed: {type(error).__name__}: {error}")
