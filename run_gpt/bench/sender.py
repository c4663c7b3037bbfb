"""Sends one request and records when its events came: over HTTP, or over gRPC through the client."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import httpx

from run_gpt.bench.protocol import Api, Event, read_event
from run_gpt.bench.sample import Sample
from run_gpt.bench.workload import Prompt
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.sse import EventDecoder
from run_gpt.errors import DeadlineExceeded, RequestError, Unavailable

Events = AsyncGenerator[tuple[float, Event]]
MakeBody = Callable[[Prompt], dict[str, Any]]
_SHOWN = 200  # characters of what a server said of a failure


class Failed(Exception):
    """A request that was not answered whole: the kind of failure, and what was said of it."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, " ".join(detail.split())[:_SHOWN]


class Sender(Protocol):
    """A way to a server."""

    def events(self, prompt: Prompt) -> Events:
        """Each event with the time (perf_counter, seconds) at which it came. Raises Failed."""

    async def aclose(self) -> None:
        """Close all connections."""


async def record(sender: Sender, prompt: Prompt, sample: Sample, origin: float, timeout: float) -> str:
    """Fill the sample, with times since `origin`, whatever becomes of the request. Returns the answer's text.

    A request is given up after `timeout` seconds.
    """
    text: list[str] = []
    finished = False
    try:
        async with asyncio.timeout(timeout), aclosing(sender.events(prompt)) as events:
            async for at, event in events:
                if event.error is not None:
                    code = event.error.get("code") or "unknown"
                    raise Failed(f"error {code}", str(event.error.get("message")))
                _take(sample, event, at - origin)
                text.append(event.text)
                finished = finished or event.finished
        if not finished:
            raise Failed("broken stream", "the stream ended before the answer did")
    except TimeoutError:
        sample.failure, sample.detail = "timeout", f"not complete after {timeout:g} s"
    except Failed as failed:
        sample.failure, sample.detail = failed.kind, failed.detail
    sample.end = time.perf_counter() - origin
    return "".join(text)


def _take(sample: Sample, event: Event, at: float) -> None:
    usage = event.usage or {}
    counted = usage.get("completion_tokens")
    # A token may make no text yet. What comes with the end only is the count of the whole answer, no new token.
    grown = counted is not None and event.has_choice and counted > (sample.output_tokens or 0)
    if grown and event.finished and sample.output_tokens is None:
        grown = False
    if event.has_output or grown:
        sample.events.append(at)
    if event.has_output or grown or event.finished:
        sample.last = at
    if counted is not None:
        sample.output_tokens, sample.prompt_tokens = counted, usage.get("prompt_tokens")
        sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


class HttpSender:
    """Server-sent events over HTTP, with as many connections as there are requests in flight."""

    def __init__(self, endpoint: Endpoint, api: Api, token: str | None, make_body: MakeBody):
        self._url, self._make_body, self._token = base_url(endpoint) + api.path, make_body, token
        # Not compressed: that would hold events back, and cost the client's time.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **authorization(token)}
        # A connection that is idle for as long as servers let it be may be closed by one while it is taken again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=1.0)
        self._client = httpx.AsyncClient(timeout=None, limits=limits, verify=endpoint.is_secure, trust_env=False)

    async def events(self, prompt: Prompt) -> Events:
        """See Sender."""
        body = json.dumps(self._make_body(prompt)).encode()
        begun = False
        try:
            async with self._client.stream("POST", self._url, content=body, headers=self._headers) as response:
                if response.status_code != httpx.codes.OK:
                    said = (await response.aread()).decode(errors="replace")
                    raise Failed(f"status {response.status_code}", self._hidden(said))
                begun = True
                decoder = EventDecoder()
                async for piece in response.aiter_raw():
                    at = time.perf_counter()
                    for data in decoder.feed(piece):
                        if data.strip() != b"[DONE]":
                            yield at, read_event(json.loads(data))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failed("connection", str(error) or type(error).__name__) from None
        except httpx.HTTPError as error:
            kind = "broken stream" if begun else "connection"
            raise Failed(kind, f"{type(error).__name__} {error}") from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:  # an event that is none
            raise Failed("broken stream", f"an event is not of this API: {type(error).__name__} {error}") from None

    async def aclose(self) -> None:
        """See Sender."""
        await self._client.aclose()

    def _hidden(self, said: str) -> str:
        """Without the key, which a server may name when it refuses it."""
        return said if self._token is None else said.replace(self._token, "***")


class GrpcSender:
    """RunGPT's own requests over gRPC, on the client's one channel."""

    def __init__(self, endpoint: Endpoint, api: Api, token: str | None, make_body: MakeBody):
        from run_gpt.client import Client

        self._model, self._make_body, self._api = Client(token).get_model(endpoint=str(endpoint)), make_body, api

    async def events(self, prompt: Prompt) -> Events:
        """See Sender."""
        body = self._make_body(prompt)
        begun = False
        try:
            if self._api.chats:
                stream: Any = self._model.achat_stream(body.pop("messages"), **body)
            else:
                stream = self._model.agenerate_stream(body.pop("prompt"), **body)
            async with aclosing(stream):
                async for answer in stream:
                    at = time.perf_counter()
                    yield at, read_event(answer.model_dump())
                    begun = True
        except DeadlineExceeded as error:
            raise Failed("timeout", error.message) from None
        except Unavailable as error:
            raise Failed("broken stream" if begun else "connection", error.message) from None
        except RequestError as error:
            raise Failed(f"error {error.code}" if begun else f"status {error.http_status}", error.message) from None

    async def aclose(self) -> None:
        """See Sender."""
        await self._model.aclose()


def base_url(endpoint: Endpoint) -> str:
    """What stands before the routes. An address that ends in /v1, as OpenAI's clients want it, means the same."""
    return f"{endpoint.scheme}://{endpoint.address}{endpoint.path.removesuffix('/v1')}"


def authorization(token: str | None) -> dict[str, str]:
    """The header that a key goes into."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}
