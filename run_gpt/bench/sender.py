"""Sends one request and records the arrival of its events: over HTTP on bare sockets, or through a `LanguageModel`."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Protocol

from run_gpt.api.language_model import LanguageModel
from run_gpt.bench.connection import Connections
from run_gpt.bench.protocol import Api, Event, read_event
from run_gpt.bench.response import BadAnswer, Response
from run_gpt.bench.sample import Sample
from run_gpt.bench.workload import Prompt
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.sse import EventDecoder
from run_gpt.errors import DeadlineExceeded, RequestError, Unavailable

Arrived = tuple[float, Any]
"""Arrival time (perf_counter, seconds), and data in the form of its sender."""
MakeBody = Callable[[Prompt, bool], dict[str, Any]]
"""Function that returns the JSON of a request; its second argument is True for a streamed one."""
_SHOWN = 200  # most characters of a failure's message
_OK = 200


class Failed(Exception):
    """Failure of a request that got no complete answer: its kind, and a message."""

    def __init__(self, kind: str, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, " ".join(detail.split())[:_SHOWN]


class Sender(Protocol):
    """Connection to a server, over which requests are sent."""

    async def send(self, prompt: Prompt, streamed: bool, arrived: list[Arrived]) -> float:
        """Send a request and append its arrivals to `arrived`. Returns the time of completion. Raises Failed."""

    def read(self, arrived: list[Arrived], streamed: bool) -> Iterable[tuple[float, Event]]:
        """Return the events in the arrivals. Raises ValueError, TypeError, AttributeError or LookupError for others."""

    async def aclose(self) -> None:
        """Close all connections."""


async def record(sender: Sender, prompt: Prompt, streamed: bool, sample: Sample, origin: float, timeout: float) -> str:
    """Send a request and fill its sample, also if it fails; times are since `origin`. Returns the answer's text.

    A request is abandoned after `timeout` seconds. Events are parsed after the end of the answer: until then the client
    only records their times.
    """
    arrived: list[Arrived] = []
    failed: Failed | None = None
    try:
        async with asyncio.timeout(timeout):
            end = await sender.send(prompt, streamed, arrived)
    except TimeoutError:
        failed, end = Failed("timeout", f"not complete after {timeout:g} s"), time.perf_counter()
    except Failed as error:
        failed, end = error, time.perf_counter()
    sample.end = end - origin
    text, said = _read(sender, arrived, streamed, sample, origin)
    if said is not None and (failed is None or said.kind.startswith("error ")):
        failed = said
    if failed is not None:
        sample.failure, sample.detail = failed.kind, failed.detail
    return text


def _read(
    sender: Sender, arrived: list[Arrived], streamed: bool, sample: Sample, origin: float
) -> tuple[str, Failed | None]:
    """Fill the sample from the arrivals. Returns the text, and the failure that they show, if any."""
    text: list[str] = []
    finished = False
    try:
        for at, event in sender.read(arrived, streamed):
            if event.error is not None:
                code = event.error.get("code") or "unknown"
                return "".join(text), Failed(f"error {code}", str(event.error.get("message")))
            _count(sample, event, at - origin, streamed)
            text.append(event.text)
            finished = finished or event.finished
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        return "".join(text), Failed("broken stream", f"an event is not of this API: {type(error).__name__} {error}")
    return "".join(text), None if finished else Failed("broken stream", "the stream ended before the answer did")


def _count(sample: Sample, event: Event, at: float, streamed: bool) -> None:
    """Add an event to the sample. A whole answer adds only its usage, since the times of its tokens are not known."""
    usage = event.usage or {}
    counted = usage.get("completion_tokens")
    # A token may not produce text yet. A count that comes only with the end is that of the whole answer, no new token.
    grown = counted is not None and event.has_choice and counted > (sample.output_tokens or 0)
    if grown and event.finished and sample.output_tokens is None:
        grown = False
    if streamed and (event.has_output or grown):
        sample.events.append(at)
    if streamed and (event.has_output or grown or event.finished):
        sample.last = at
    if counted is not None:
        sample.output_tokens, sample.prompt_tokens = counted, usage.get("prompt_tokens")
        sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


class HttpSender:
    """Sender of JSON over HTTP; answers are JSON or server-sent events."""

    def __init__(self, endpoint: Endpoint, api: Api, token: str | None, make_body: MakeBody):
        self._api, self._token, self._make_body = api, token, make_body
        self._connections = Connections(endpoint)
        # No compression: it would delay events, and take processor time of the client.
        headers = {"Host": endpoint.address, "Content-Type": "application/json", "Accept-Encoding": "identity"}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in (headers | authorization(token)).items())
        self._prefix = _prefix(endpoint)

    async def send(self, prompt: Prompt, streamed: bool, arrived: list[Arrived]) -> float:
        """See Sender. The arrivals are pieces of the body."""
        response = Response(arrived)
        try:
            ended = await self._connections.ask(self._request(prompt, streamed), response)
        except BadAnswer as error:
            raise Failed("broken stream", f"this is no HTTP/1.1: {error}") from None
        except OSError as error:
            kind = "connection" if response.status is None else "broken stream"
            raise Failed(kind, f"{type(error).__name__} {error}") from None
        finally:
            refused = response.status not in (None, _OK)
            said = b"".join(piece for _, piece in arrived) if refused else b""
            if refused:  # an error body is no answer
                arrived.clear()
        if refused:
            raise Failed(f"status {response.status}", self._hidden(said.decode(errors="replace")))
        return ended

    def read(self, arrived: list[Arrived], streamed: bool) -> Iterator[tuple[float, Event]]:
        """See Sender."""
        if not streamed and arrived:
            yield arrived[-1][0], read_event(json.loads(b"".join(piece for _, piece in arrived)))
            return
        decoder = EventDecoder()
        for at, piece in arrived:
            for data in decoder.feed(piece):
                if data.strip() != b"[DONE]":
                    yield at, read_event(json.loads(data))

    async def aclose(self) -> None:
        """See Sender."""
        self._connections.close()

    def _request(self, prompt: Prompt, streamed: bool) -> bytes:
        body = json.dumps(self._make_body(prompt, streamed)).encode()
        route = self._prefix + self._api.route(streamed=streamed)
        return f"POST {route} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def _hidden(self, said: str) -> str:
        """Mask the key in a message: a server may repeat it when it refuses it."""
        return said if self._token is None else said.replace(self._token, "***")


class ModelSender:
    """Sender that calls a `LanguageModel`: the client's, over gRPC, or a model in this process."""

    def __init__(self, model: LanguageModel, api: Api, make_body: MakeBody):
        self._model, self._api, self._make_body = model, api, make_body

    async def send(self, prompt: Prompt, streamed: bool, arrived: list[Arrived]) -> float:
        """See Sender. The arrivals are the library's answers."""
        body = self._make_body(prompt, streamed)
        content = body.pop("messages" if self._api.chats else "prompt")
        try:
            if not streamed:
                ask: Any = self._model.achat if self._api.chats else self._model.agenerate
                answer = await ask(content, **body)
                arrived.append((time.perf_counter(), answer))
            else:
                begin: Any = self._model.achat_stream if self._api.chats else self._model.agenerate_stream
                async with aclosing(begin(content, **body)) as stream:
                    async for answer in stream:
                        arrived.append((time.perf_counter(), answer))
        except DeadlineExceeded as error:
            raise Failed("timeout", error.message) from None
        except Unavailable as error:
            raise Failed("broken stream" if arrived else "connection", error.message) from None
        except RequestError as error:
            raise Failed(f"error {error.code}" if arrived else f"status {error.http_status}", error.message) from None
        return time.perf_counter()

    def read(self, arrived: list[Arrived], streamed: bool) -> Iterator[tuple[float, Event]]:
        """See Sender."""
        return ((at, read_event(answer.model_dump())) for at, answer in arrived)

    async def aclose(self) -> None:
        """See Sender."""
        await self._model.aclose()


def base_url(endpoint: Endpoint) -> str:
    """Return the URL before the routes. A final /v1 in the address, as OpenAI's clients need it, is dropped."""
    return f"{endpoint.scheme}://{endpoint.address}{_prefix(endpoint)}"


def _prefix(endpoint: Endpoint) -> str:
    return endpoint.path.removesuffix("/v1")


def authorization(token: str | None) -> dict[str, str]:
    """Return the header with the API key; empty without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}
