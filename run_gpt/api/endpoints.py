"""The table of endpoints, which gateway, executor and client read: paths, requests, answers, handlers."""

from dataclasses import dataclass
from enum import Enum
from typing import cast

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Body, ChatAnswer, ChatEvent, GenerateAnswer
from run_gpt.api.anthropic.answers import InputTokens, MessageAnswer, MessageStreamEvent
from run_gpt.api.anthropic.messages import CountTokensRequest, MessagesRequest
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.error_forms import ErrorForm, error_form
from run_gpt.api.models import LoadModelRequest, ModelState, UnloadModelRequest
from run_gpt.api.ollama.answers import OllamaAnswer, OllamaVectors
from run_gpt.api.ollama.models import RunningRequest, ShownModel, ShowRequest, Tags, TagsRequest
from run_gpt.api.ollama.requests import OllamaChatRequest, OllamaEmbedRequest, OllamaGenerateRequest
from run_gpt.api.openai.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from run_gpt.api.openai.completions import Completion, CompletionRequest
from run_gpt.api.openai.embeddings import CreateEmbeddingResponse, EmbeddingRequest
from run_gpt.api.openai.models import ListModelsRequest, Model, ModelList, RetrieveModelRequest
from run_gpt.api.openai.response_events import Response, ResponseStreamEvent
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.api.sse import LINES, SSE, StreamForm
from run_gpt.api.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens


class Handler(Enum):
    """Part of the server that answers an endpoint."""

    MODEL = "a replica's model, which gets the request as it is"
    ADAPTERS = "the models of all replicas, which make the change one after the other"
    TRANSLATED = "the gateway, by the native requests that a request of another API stands for"
    LOAD_MODEL = "the gateway, which has replicas load their model"
    UNLOAD_MODEL = "the gateway, which has replicas free their memory"
    LIST_MODELS = "the gateway, from its knowledge of all models"
    SHOW_MODEL = "the gateway, from its knowledge of one model"


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: HTTP route, gRPC endpoint and, where a model answers, executor's endpoint have the same path."""

    path: str
    """Path; a name in braces is a field of the request, in the path of an HTTP GET."""
    request: type[AnyRequest]
    handler: Handler
    summary: str
    answer: type[Body] | None = None
    """Type of the whole answer; None: it is always streamed."""
    event: type[Body] | None = None
    """Type of a stream's events; None: never streamed. With both, the request chooses by its field `stream`."""
    get: bool = False
    """True when HTTP takes a GET without a body as well."""
    last_line: str | None = None
    """Data of the last event of an HTTP stream, after all answers."""
    form: StreamForm = SSE
    """Form of the stream over HTTP."""

    @property
    def error(self) -> ErrorForm:
        """Function that makes the body of an error's answer, which is also the data of a stream's error event."""
        return error_form(self.path)

    def streams(self, request: AnyRequest) -> bool:
        """Return True when this request's answer is a stream."""
        return self.answer is None or (self.event is not None and bool(getattr(request, "stream", False)))

    def body(self, *, stream: bool) -> type[Body]:
        """Return the type of a stream's events, or of the whole answer. The endpoint must have it."""
        return cast("type[Body]", self.event if stream else self.answer)


_MODEL, _ADAPTERS, _TRANSLATED = Handler.MODEL, Handler.ADAPTERS, Handler.TRANSLATED

ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/generate", GenerateRequest, _MODEL, "Continue a text", answer=GenerateAnswer),
        Endpoint("/generate_stream", GenerateRequest, _MODEL, "Continue a text, event by event", event=GenerateAnswer),
        Endpoint("/chat", ChatRequest, _MODEL, "Answer a chat", answer=ChatAnswer),
        Endpoint("/chat_stream", ChatRequest, _MODEL, "Answer a chat, event by event", event=ChatEvent),
        Endpoint("/embed", EmbedRequest, _MODEL, "Make a vector of each text", answer=Embeddings),
        Endpoint("/tokenize", TokenizeRequest, _MODEL, "Make token ids of a text or a chat", answer=Tokens),
        Endpoint("/detokenize", DetokenizeRequest, _MODEL, "Make a text of token ids", answer=DetokenizedText),
        Endpoint("/adapters", ListAdaptersRequest, _MODEL, "List the LoRA adapters", answer=AdapterList, get=True),
        Endpoint("/adapters/load", LoadAdapterRequest, _ADAPTERS, "Load a LoRA adapter", answer=AdapterList),
        Endpoint("/adapters/unload", UnloadAdapterRequest, _ADAPTERS, "Unload a LoRA adapter", answer=AdapterList),
        Endpoint(
            "/models/load",
            LoadModelRequest,
            Handler.LOAD_MODEL,
            "Load a model, and say how far that is",
            event=ModelState,
        ),
        Endpoint(
            "/models/unload",
            UnloadModelRequest,
            Handler.UNLOAD_MODEL,
            "Unload a model that nobody uses",
            answer=ModelState,
        ),
        Endpoint(
            "/v1/completions",
            CompletionRequest,
            _TRANSLATED,
            "OpenAI's completions: continue texts or token ids, or score them",
            answer=Completion,
            event=Completion,
            last_line="[DONE]",
        ),
        Endpoint(
            "/v1/chat/completions",
            ChatCompletionRequest,
            _TRANSLATED,
            "OpenAI's chat completions: answer a chat, with text or calls of tools",
            answer=ChatCompletion,
            event=ChatCompletionChunk,
            last_line="[DONE]",
        ),
        Endpoint(
            "/v1/responses",
            ResponseRequest,
            _TRANSLATED,
            "OpenAI's responses, without a state",
            answer=Response,
            event=ResponseStreamEvent,
        ),
        Endpoint(
            "/v1/embeddings",
            EmbeddingRequest,
            _TRANSLATED,
            "OpenAI's embeddings: make a vector of each text",
            answer=CreateEmbeddingResponse,
        ),
        Endpoint(
            "/v1/messages",
            MessagesRequest,
            _TRANSLATED,
            "Anthropic's messages: answer a conversation, with text, thinking or calls of tools",
            answer=MessageAnswer,
            event=MessageStreamEvent,
        ),
        Endpoint(
            "/v1/messages/count_tokens",
            CountTokensRequest,
            _TRANSLATED,
            "Anthropic's count of a conversation's tokens",
            answer=InputTokens,
        ),
        Endpoint(
            "/api/chat",
            OllamaChatRequest,
            _TRANSLATED,
            "Ollama's chat: answer a chat, with text or calls of tools",
            answer=OllamaAnswer,
            event=OllamaAnswer,
            form=LINES,
        ),
        Endpoint(
            "/api/generate",
            OllamaGenerateRequest,
            _TRANSLATED,
            "Ollama's generate: answer a prompt, or continue it as it is",
            answer=OllamaAnswer,
            event=OllamaAnswer,
            form=LINES,
        ),
        Endpoint(
            "/api/embed",
            OllamaEmbedRequest,
            _TRANSLATED,
            "Ollama's embed: make a vector of each text",
            answer=OllamaVectors,
        ),
        Endpoint(
            "/api/tags",
            TagsRequest,
            Handler.LIST_MODELS,
            "Ollama's list of the models",
            answer=Tags,
            get=True,
        ),
        Endpoint(
            "/api/ps",
            RunningRequest,
            Handler.LIST_MODELS,
            "Ollama's list of the models in memory",
            answer=Tags,
            get=True,
        ),
        Endpoint(
            "/api/show",
            ShowRequest,
            Handler.SHOW_MODEL,
            "Ollama's description of a model",
            answer=ShownModel,
        ),
        Endpoint(
            "/v1/models", ListModelsRequest, Handler.LIST_MODELS, "List the served models", answer=ModelList, get=True
        ),
        Endpoint(
            "/v1/models/{model}",
            RetrieveModelRequest,
            Handler.SHOW_MODEL,
            "What is known of one model",
            answer=Model,
            get=True,
        ),
    )
}

MODEL_ENDPOINTS = [endpoint for endpoint in ENDPOINTS.values() if endpoint.handler in (_MODEL, _ADAPTERS)]
"""Endpoints that a model answers: executors have them as well."""


_BY_REQUEST = {
    (endpoint.request, stream): endpoint
    for endpoint in ENDPOINTS.values()
    for stream in (False, True)
    if endpoint.body(stream=stream) is not None
}


def endpoint_of(request: AnyRequest, *, stream: bool) -> Endpoint:
    """Return the endpoint that answers this kind of request, whole or as a stream. Raises KeyError if none does."""
    return _BY_REQUEST[type(request), stream]
