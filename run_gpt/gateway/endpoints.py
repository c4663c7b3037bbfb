"""The table of the endpoints that both doors serve."""

from dataclasses import dataclass

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer, ChatCompletion, ChatCompletionChunk, Completion
from run_gpt.api.embeddings import Embeddings, EmbedRequest
from run_gpt.api.schema import AnyRequest, ChatRequest, GenerateRequest


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: HTTP route and Executor endpoint have the same path."""

    path: str
    request: type[AnyRequest]
    answer: type[Answer]
    stream: bool
    summary: str
    readable: bool = False
    """Whether HTTP takes a GET without a body as well."""


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/generate", GenerateRequest, Completion, False, "Continue a text"),
        Endpoint("/generate_stream", GenerateRequest, Completion, True, "Continue a text, event by event"),
        Endpoint("/chat", ChatRequest, ChatCompletion, False, "Answer a chat"),
        Endpoint("/chat_stream", ChatRequest, ChatCompletionChunk, True, "Answer a chat, event by event"),
        Endpoint("/embed", EmbedRequest, Embeddings, False, "Make a vector of each text"),
        Endpoint("/adapters", ListAdaptersRequest, AdapterList, False, "List the LoRA adapters", readable=True),
        Endpoint("/adapters/load", LoadAdapterRequest, AdapterList, False, "Load a LoRA adapter"),
        Endpoint("/adapters/unload", UnloadAdapterRequest, AdapterList, False, "Unload a LoRA adapter"),
    )
}


def endpoint_of(request: AnyRequest, *, stream: bool) -> Endpoint:
    """The endpoint that answers this kind of request."""
    return next(e for e in ENDPOINTS.values() if type(request) is e.request and e.stream == stream)
