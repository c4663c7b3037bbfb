"""`CausalLMExecutor`: hosts one model as a Jina Executor; documents in, documents out."""

import logging
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from docarray import BaseDoc, DocList
from jina import Executor, requests

from run_gpt.api import documents
from run_gpt.api.adapters import ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import ChatCompletionChunk, Completion, Status
from run_gpt.api.documents import (
    AdapterListDocument,
    ChatCompletionChunkDocument,
    ChatCompletionDocument,
    ChatRequestDocument,
    CompletionDocument,
    DetokenizedTextDocument,
    DetokenizeRequestDocument,
    EmbeddingsDocument,
    EmbedRequestDocument,
    GenerateRequestDocument,
    ListAdaptersRequestDocument,
    LoadAdapterRequestDocument,
    LoadModelRequestDocument,
    MetricsDocument,
    StatusDocument,
    TokenizeRequestDocument,
    TokensDocument,
    UnloadAdapterRequestDocument,
    UnloadModelRequestDocument,
    WireError,
)
from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest
from run_gpt.api.together import together
from run_gpt.api.tokens import DetokenizeRequest, TokenizeRequest
from run_gpt.config import EngineConfig, HostConfig, ModelConfig
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

# Arguments that Jina itself passes to an Executor's constructor.
_JINAS = {"metas", "requests", "runtime_args", "workspace", "dynamic_batching"}

# Jina turns each setting that looks like a number into one, and makes a text of a type that YAML lacks.
_MEANT: dict[str, Any] = {
    **dict.fromkeys(("model_name", "model_path", "adapter_name_or_path", "device"), str),
    "cache_dir": Path,
    "adapters": lambda adapters: {str(name): str(path) for name, path in adapters.items()},
}


class CausalLMExecutor(Executor):  # type: ignore[misc]
    """One (possibly sharded) causal language model behind `/generate`, `/chat`, their streams, `/status`, `/metrics`.

    Takes the fields of ModelConfig, EngineConfig and HostConfig as keyword arguments, and loads the model before it
    serves, unless `preload` is false: then `/load` does. Raises SetupError for a setting it does not know or a model
    that cannot be loaded.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{name: settings.pop(name) for name in _JINAS & settings.keys()})
        model_config, engine_config = _take(ModelConfig, settings), _take(EngineConfig, settings)
        host_config = _take(HostConfig, settings)
        if settings:
            raise SetupError(f"CausalLMExecutor has no setting {', '.join(map(repr, settings))}")
        self.failed = False
        """True when the engine has died; the process then ends."""
        self.host = Host(model_config, engine_config, host_config, on_dead=self._fail)
        self.service = ModelService(self.host, Spans(self.tracer_provider))
        self._link = LinkServer(LinkEndpoints(self.service))
        self.rpc_methods = {METHOD: self._link.handler}
        """gRPC methods beside Jina's (see jina_server)."""

    @property
    def model(self) -> "Model":
        """The loaded model. Raises Unavailable."""
        return self.host.model

    @requests(on="/generate")
    async def generate(
        self,
        docs: DocList[GenerateRequestDocument],
        **_: Any,
    ) -> DocList[CompletionDocument]:
        """Continue each document's prompt; the prompts run together. Raises WireError."""
        return DocList[CompletionDocument](await self._answers(GenerateRequest, docs))

    @requests(on="/chat")
    async def chat(
        self,
        docs: DocList[ChatRequestDocument],
        **_: Any,
    ) -> DocList[ChatCompletionDocument]:
        """Answer each document's chat. Raises WireError."""
        return DocList[ChatCompletionDocument](await self._answers(ChatRequest, docs))

    @requests(on="/generate_stream")
    async def generate_stream(
        self,
        doc: GenerateRequestDocument,  # type: ignore[valid-type]
        **_: Any,
    ) -> CompletionDocument:  # type: ignore[valid-type]
        """Continue a prompt, event by event; an error is the last document."""
        async with aclosing(self._events(GenerateRequest, Completion, doc)) as events:
            async for event in events:
                yield event

    @requests(on="/chat_stream")
    async def chat_stream(
        self,
        doc: ChatRequestDocument,  # type: ignore[valid-type]
        **_: Any,
    ) -> ChatCompletionChunkDocument:  # type: ignore[valid-type]
        """Answer a chat, event by event; an error is the last document."""
        async with aclosing(self._events(ChatRequest, ChatCompletionChunk, doc)) as events:
            async for event in events:
                yield event

    @requests(on="/embed")
    async def embed(self, docs: DocList[EmbedRequestDocument], **_: Any) -> DocList[EmbeddingsDocument]:
        """Make a vector of each text. Raises WireError."""
        return DocList[EmbeddingsDocument](await self._answers(EmbedRequest, docs))

    @requests(on="/tokenize")
    async def tokenize(self, docs: DocList[TokenizeRequestDocument], **_: Any) -> DocList[TokensDocument]:
        """Make token ids of each text or chat. Raises WireError."""
        return DocList[TokensDocument](await self._answers(TokenizeRequest, docs))

    @requests(on="/detokenize")
    async def detokenize(self, docs: DocList[DetokenizeRequestDocument], **_: Any) -> DocList[DetokenizedTextDocument]:
        """Make a text of each list of token ids. Raises WireError."""
        return DocList[DetokenizedTextDocument](await self._answers(DetokenizeRequest, docs))

    @requests(on="/adapters")
    async def adapters(self, docs: DocList[ListAdaptersRequestDocument], **_: Any) -> DocList[AdapterListDocument]:
        """Return the adapters that requests may name."""
        return DocList[AdapterListDocument](await self._answers(ListAdaptersRequest, docs))

    @requests(on="/adapters/load")
    async def load_adapter(self, docs: DocList[LoadAdapterRequestDocument], **_: Any) -> DocList[AdapterListDocument]:
        """Load an adapter. Raises WireError."""
        return DocList[AdapterListDocument](await self._answers(LoadAdapterRequest, docs))

    @requests(on="/adapters/unload")
    async def unload_adapter(
        self, docs: DocList[UnloadAdapterRequestDocument], **_: Any
    ) -> DocList[AdapterListDocument]:
        """Unload an adapter. Raises WireError."""
        return DocList[AdapterListDocument](await self._answers(UnloadAdapterRequest, docs))

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

    async def _answers(self, kind: type[AnyRequest], docs: Any) -> list[BaseDoc]:
        async def answer(doc: BaseDoc) -> BaseDoc:
            return documents.answer_to_document(await self.service.answer(documents.document_to_request(kind, doc)))

        try:
            return await together([answer(doc) for doc in docs])
        except Exception as error:
            raise WireError(_request_error(error)) from error

    async def _events(self, kind: type[AnyRequest], answer: Any, doc: BaseDoc) -> AsyncGenerator[BaseDoc, None]:
        try:
            request = cast("Any", documents.document_to_request(kind, doc, stream=True))
            async with aclosing(cast("Any", self.service.events(request))) as events:
                async for event in events:
                    yield documents.answer_to_document(event)
        except Exception as error:
            yield documents.error_to_document(answer, _request_error(error))

    def _fail(self) -> None:
        """End this process, because its engine is dead, so that its supervisor starts a new one."""
        log.error("the engine is dead, this process ends")
        self.failed = True
        os.kill(os.getpid(), signal.SIGTERM)


def _status_document(status: Status) -> BaseDoc:
    return StatusDocument(**status.model_dump())


def _take(config: type[Any], settings: dict[str, Any]) -> Any:
    """Remove the fields of `config` from `settings`, and return a `config` of them."""
    mine = {f.name: settings.pop(f.name) for f in fields(config) if f.name in settings}
    return config(**{n: _MEANT[n](value) if n in _MEANT and value is not None else value for n, value in mine.items()})


def _request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    log.error("the request %s failed", request_ids.current.get() or "without an id", exc_info=error)
    return InternalError(f"the request failed: {type(error).__name__}: {error}")
