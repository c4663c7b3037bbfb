"""The table of the four endpoints that both doors serve."""

from dataclasses import dataclass

from run_gpt.api.schema import Answer, ChatCompletion, ChatCompletionChunk, ChatRequest, Completion, GenerateRequest


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: HTTP route and Executor endpoint have the same path."""

    path: str
    request: type[GenerateRequest] | type[ChatRequest]
    answer: type[Answer]
    stream: bool
    summary: str


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/generate", GenerateRequest, Completion, False, "Continue a text"),
        Endpoint("/generate_stream", GenerateRequest, Completion, True, "Continue a text, event by event"),
        Endpoint("/chat", ChatRequest, ChatCompletion, False, "Answer a chat"),
        Endpoint("/chat_stream", ChatRequest, ChatCompletionChunk, True, "Answer a chat, event by event"),
    )
}


def endpoint_of(request: GenerateRequest | ChatRequest, *, stream: bool) -> Endpoint:
    """The endpoint that answers this kind of request."""
    return next(e for e in ENDPOINTS.values() if type(request) is e.request and e.stream == stream)
