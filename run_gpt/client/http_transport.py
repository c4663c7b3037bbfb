"""Transport over HTTP: JSON, and server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from run_gpt.api.answers import Body
from run_gpt.api.endpoints import endpoint_of
from run_gpt.api.request import AnyRequest
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.sse import EventDecoder
from run_gpt.client.transport import broken, not_rungpt, read_answer, sent_id, too_late, unreachable
from run_gpt.client.trust import http_trust
from run_gpt.errors import InternalError, error_from_dict
from run_gpt.process import request_ids

CONNECT_SECONDS = 10.0


class HttpTransport:
    """Transport with one connection pool for each event loop that uses it; a pool is closed with its loop."""

    def __init__(self, endpoint: Endpoint, token: str | None, ca: Path | None = None):
        self._ca = ca
        self._endpoint = endpoint
        self._base = f"{endpoint.scheme}://{endpoint.address}{endpoint.path}"
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pools: dict[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[None]]] = {}

    async def answer(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> Body:
        """See Transport."""
        called = endpoint_of(request, stream=False)
        async with self._sent(called.path, request, timeout, request_id) as (response, deadline):
            body = await _within(deadline, response.aread())
            return read_answer(called.body(stream=False), self._json(body, response), self._endpoint)

    async def stream(self, request: AnyRequest, timeout: float | None, request_id: str | None) -> AsyncIterator[Body]:
        """See Transport."""
        called, decoder = endpoint_of(request, stream=True), EventDecoder()
        kind = called.body(stream=True)
        async with self._sent(called.path, request, timeout, request_id) as (response, deadline):
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._not_rungpt(response, await _within(deadline, response.aread()))
            pieces = response.aiter_bytes()
            while (piece := await _within(deadline, anext(pieces, None))) is not None:
                for data in decoder.feed(piece):
                    yield read_answer(kind, self._json(data, response), self._endpoint)

    async def aclose(self) -> None:
        """See Transport."""
        for loop, (_, closing) in list(self._pools.items()):
            if loop is asyncio.get_running_loop():
                await closing.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(closing.aclose(), loop)

    @asynccontextmanager
    async def _sent(
        self, path: str, request: AnyRequest, timeout: float | None, request_id: str | None
    ) -> AsyncIterator[tuple[httpx.Response, float | None]]:
        """Yield the response to a request, its status checked, and the time at which it must be complete."""
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        headers = self._headers | sent_id(request_id)
        response = None

        def name() -> str | None:
            return (None if response is None else response.headers.get(request_ids.HEADER)) or request_id

        try:
            with request_ids.in_errors(name), self._errors(timeout):
                pool = await self._pool()
                body = request.model_dump_json(exclude_none=True)
                sending = pool.build_request("POST", self._base + path, content=body, headers=headers)
                response = await _within(deadline, pool.send(sending, stream=True))
                if response.status_code != httpx.codes.OK:
                    self._raise_error(response, await _within(deadline, response.aread()))
                yield response, deadline
        finally:
            if response is not None:
                await response.aclose()

    @contextmanager
    def _errors(self, timeout: float | None) -> Iterator[None]:
        """Turn httpx's errors into ours."""
        try:
            yield
        except TimeoutError:
            raise too_late(self._endpoint, timeout) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise unreachable(self._endpoint, str(error) or type(error).__name__) from error
        except httpx.TransportError as error:
            raise broken(self._endpoint, str(error) or type(error).__name__) from error
        except httpx.HTTPError as error:
            raise not_rungpt(self._endpoint, str(error)) from error

    def _raise_error(self, response: httpx.Response, body: bytes) -> None:
        fields = self._json(body, response)
        error = fields.get("error") if isinstance(fields, dict) else None
        raise error_from_dict(error) if isinstance(error, dict) else self._not_rungpt(response, body)

    def _json(self, body: bytes, response: httpx.Response) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            raise self._not_rungpt(response, body) from None

    def _not_rungpt(self, response: httpx.Response, body: bytes) -> InternalError:
        text = " ".join(body[:400].decode(errors="replace").split())
        return not_rungpt(self._endpoint, f"HTTP status {response.status_code}, {text[:80]!r}")

    async def _pool(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            for dead in [other for other in self._pools if other.is_closed()]:
                del self._pools[dead]
            pool = httpx.AsyncClient(
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None),
                verify=http_trust(self._endpoint.is_secure, self._ca),
            )
            closing = self._closing(loop, pool)
            self._pools[loop] = pool, closing
            await anext(closing)
        return self._pools[loop][0]

    async def _closing(self, loop: asyncio.AbstractEventLoop, pool: httpx.AsyncClient) -> AsyncGenerator[None]:
        """Close the pool when this generator is closed: by `aclose`, or by the loop, which closes generators last."""
        try:
            yield
        finally:
            self._pools.pop(loop, None)
            await pool.aclose()


async def _within(deadline: float | None, awaitable: Any) -> Any:
    """Return the result of `awaitable`. Raises TimeoutError at the deadline.

    Use it at each wait, not around a generator's body: there it would cancel what the generator's reader waits for.
    """
    async with asyncio.timeout_at(deadline):
        return await awaitable
