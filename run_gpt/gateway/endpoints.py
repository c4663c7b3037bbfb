"""The table of the endpoints that both ports serve."""

from dataclasses import dataclass

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Body, ChatCompletion, ChatCompletionChunk, Completion
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.models import LoadModelRequest, ModelState, UnloadModelRequest
from run_gpt.api.openai.chat import ChatAnswer, ChatChunk, ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest, TextCompletion
from run_gpt.api.openai.embeddings import EmbeddingList, EmbeddingRequest
from run_gpt.api.openai.models import ListModelsRequest, ModelCard, ModelList, RetrieveModelRequest
from run_gpt.api.openai.response_events import Response, ResponseEvent
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest
from run_gpt.api.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: HTTP route, gRPC endpoint and, for native requests, Executor endpoint have the same path."""

    path: str
    """Path; a name in braces is a field of the request, in the path of an HTTP GET."""
    request: type[AnyRequest]
    summary: str
    answer: type[Body] | None = None
    """Type of the whole answer; None: it is always streamed."""
    event: type[Body] | None = None
    """Type of a stream's events; None: never streamed. With both, the request chooses by its field `stream`."""
    get: bool = False
    """True when HTTP takes a GET without a body as well."""
    last_line: str | None = None
    """Data of the last event of an HTTP stream, after all answers."""

    def streams(self, request: AnyRequest) -> bool:
        """Return True when this request's answer is a stream."""
        return self.answer is None or (self.event is not None and bool(getattr(request, "stream", False)))


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/generate", GenerateRequest, "Continue a text", answer=Completion),
        Endpoint("/generate_stream", GenerateRequest, "Continue a text, event by event", event=Completion),
        Endpoint("/chat", ChatRequest, "Answer a chat", answer=ChatCompletion),
        Endpoint("/chat_stream", ChatRequest, "Answer a chat, event by event", event=ChatCompletionChunk),
        Endpoint("/embed", EmbedRequest, "Make a vector of each text", answer=Embeddings),
        Endpoint("/tokenize", TokenizeRequest, "Make token ids of a text or a chat", answer=Tokens),
        Endpoint("/detokenize", DetokenizeRequest, "Make a text of token ids", answer=DetokenizedText),
        Endpoint("/adapters", ListAdaptersRequest, "List the LoRA adapters", answer=AdapterList, get=True),
        Endpoint("/adapters/load", LoadAdapterRequest, "Load a LoRA adapter", answer=AdapterList),
        Endpoint("/adapters/unload", UnloadAdapterRequest, "Unload a LoRA adapter", answer=AdapterList),
        Endpoint("/models/load", LoadModelRequest, "Load a model, and say how far that is", event=ModelState),
        Endpoint("/models/unload", UnloadModelRequest, "Unload a model that nobody uses", answer=ModelState),
        Endpoint(
            "/v1/completions",
            CompletionRequest,
            "OpenAI's completions: continue texts or token ids, or score them",
            answer=TextCompletion,
            event=TextCompletion,
            last_line="[DONE]",
        ),
        Endpoint(
            "/v1/chat/completions",
            ChatCompletionRequest,
            "OpenAI's chat completions: answer a chat, with text or calls of tools",
            answer=ChatAnswer,
            event=ChatChunk,
            last_line="[DONE]",
        ),
        Endpoint(
            "/v1/responses",
            ResponseRequest,
            "OpenAI's responses, without a state",
            answer=Response,
            event=ResponseEvent,
        ),
        Endpoint(
            "/v1/embeddings", EmbeddingRequest, "OpenAI's embeddings: make a vector of each text", answer=EmbeddingList
        ),
        Endpoint("/v1/models", ListModelsRequest, "List the served models", answer=ModelList, get=True),
        Endpoint("/v1/models/{model}", RetrieveModelRequest, "What is known of one model", answer=ModelCard, get=True),
    )
}


def endpoint_of(request: AnyRequest, *, stream: bool) -> Endpoint:
    """Return the endpoint of an Executor that answers this kind of native request."""
    return next(
        e for e in ENDPOINTS.values() if type(request) is e.request and (e.event if stream else e.answer) is not None
    )
