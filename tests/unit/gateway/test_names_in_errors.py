"""Errors of the native requests behind one of OpenAI's: they must name the field that the user wrote."""

from typing import Any

import pytest

from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.embeddings import EmbeddingRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.request import AnyRequest
from run_gpt.config import GatewayConfig
from run_gpt.errors import InvalidRequest, RequestError
from run_gpt.gateway.service import Service


class FailingPool:
    """Pool of one ready replica, which refuses everything."""

    def __init__(self, error: RequestError):
        self.error, self.ready, self.model = error, [object()], "m"

    def check_ready(self) -> None:
        """Accept: the replica is ready."""

    async def whole(self, *_: Any) -> Any:
        raise self.error

    async def begin(self, *_: Any) -> Any:
        raise self.error


async def first_events(service: Service, request: AnyRequest) -> Any:
    async with service.stream(request) as events:
        return await events.sse()


RESPONSE = ResponseRequest.parse({"input": "x"})
CASES = [
    (EmbeddingRequest.parse({"input": "x"}), "texts", "texts: no", "input", "input: no"),
    (EmbeddingRequest.parse({"input": "x"}), "texts", "a text is long", "input", "a text is long"),
    (RESPONSE, "messages", "messages: no", "input", "input: no"),
    (RESPONSE, "response_format", "response_format: no", "text.format", "text.format: no"),
    (RESPONSE, "tools", "tools: no", "tools", "tools: no"),
    (RESPONSE, None, "no", None, "no"),
    (CompletionRequest.parse({"prompt": "x"}), "prompt", "prompt: no", "prompt", "prompt: no"),
]


@pytest.mark.parametrize(("request_", "param", "message", "named", "says"), CASES, ids=str)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_names_the_field_of_the_request(
    request_: AnyRequest, param: str | None, message: str, named: str | None, says: str, stream: bool
) -> None:
    service = Service([FailingPool(InvalidRequest(message, param=param))], GatewayConfig())  # type: ignore[arg-type]
    if stream and isinstance(request_, EmbeddingRequest):
        return
    with pytest.raises(InvalidRequest) as raised:
        await (first_events(service, request_) if stream else service.answer(request_))
    assert (raised.value.param, raised.value.message) == (named, says)
    assert service.in_flight == 0


async def test_what_the_natives_cannot_be_is_found_before_any_replica_is_asked() -> None:
    service = Service([FailingPool(InvalidRequest("asked"))], GatewayConfig())  # type: ignore[arg-type]
    request = CompletionRequest.parse({"prompt": "x", "best_of": 2, "stream": True})
    with pytest.raises(InvalidRequest, match="best_of = 2 cannot be streamed") as raised:
        await first_events(service, request)
    assert raised.value.param == "best_of"
