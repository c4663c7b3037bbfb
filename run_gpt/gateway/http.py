"""The HTTP app: its routes, and errors in OpenAI's shape."""

import asyncio
import json
import logging
import re
from collections.abc import Coroutine
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from run_gpt.api.endpoints import ENDPOINTS, Endpoint
from run_gpt.api.error_forms import error_body
from run_gpt.api.fields import ignored_header
from run_gpt.api.long_parts import Filled
from run_gpt.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    QueueFull,
    RateLimited,
    RequestError,
    RequestTooLarge,
    UnknownEndpoint,
    UnsupportedEncoding,
)
from run_gpt.gateway import openapi
from run_gpt.gateway.bodies import read_body, request_of
from run_gpt.gateway.connection import DROP_ALL
from run_gpt.gateway.encodings import ACCEPTED
from run_gpt.gateway.event_stream import ClientGone, EventStream, until_gone
from run_gpt.gateway.front import PAGES
from run_gpt.gateway.held import BODIES, HeldBytes, Lease
from run_gpt.gateway.long_answers import LongResponse
from run_gpt.gateway.playground import PLAYGROUND, playground_files
from run_gpt.gateway.record import current_rights, note_error
from run_gpt.gateway.scrape import CONTENT_TYPE, scrape
from run_gpt.gateway.service import Service

log = logging.getLogger(__name__)
Result = TypeVar("Result")

STRANGER = "rungpt.stranger"
"""Name in a request's scope; True there: it has no valid key, and the server has keys."""

OLLAMA_VERSION = "0.14.0"
"""Version of Ollama's API that its clients are given."""

NEAR = 0.75
"""Similarity from which on a route may have been meant by a path that is none."""
_NO_GUESS = re.compile(r"\{|/playground/|.+/$")
"""Paths that no client types."""


def build_app(service: Service) -> Starlette:
    """Build the app over `service`."""
    held = HeldBytes(BODIES * service.config.max_body_bytes)
    routes = [
        *(_endpoint_route(service, endpoint, held) for endpoint in ENDPOINTS.values()),
        *(route(path, function, "GET") for path, function in _others(service).items()),
        *(route(path, function, "GET") for path, function in playground_files().items()),
        *(route(f"{page}/", _without_slash, "GET") for page in PAGES),
    ]
    handlers: dict[Any, Any] = {
        RequestError: _on_request_error,
        HTTPException: _on_http_exception,
        ClientGone: _on_client_gone,
        ClientDisconnect: _on_client_gone,
        Exception: _on_exception,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def _others(service: Service) -> dict[str, Any]:
    """Return the handlers of `GET` that no endpoint has, by their paths."""
    ours = {"name": "RunGPT", "version": version("rungpt")}
    document = openapi.describe(ours["version"])

    async def ready(request: Request) -> Response:
        return _json(service.status(to_stranger=request.scope.get(STRANGER, False)), 200 if service.ready else 503)

    async def metrics(request: Request) -> Response:
        current_rights().check_metrics()
        return Response(await scrape(service.models.replicas, service.metrics), media_type=CONTENT_TYPE)

    async def docs(request: Request) -> Response:
        return HTMLResponse(openapi.page(document))

    return {
        "/": _text("Ollama is running")
        if service.config.ollama
        else _constant({**ours, "docs": "/docs", "playground": PLAYGROUND, "ready": "/ready"}),
        "/api/version": _constant({"version": OLLAMA_VERSION}),
        "/health": _constant({"status": "alive"}),
        "/version": _constant({**ours, "api": "v1"}),
        "/openapi.json": _constant(document),
        "/ready": ready,
        "/metrics": metrics,
        "/docs": docs,
    }


def route(path: str, function: Any, *methods: str) -> Route:
    """Return a route that takes these methods, HEAD where it takes GET, and no other."""
    return Route(path, function, methods=methods)


def _constant(content: Any) -> Any:
    """Return a handler that answers the same each time."""

    async def answer(request: Request) -> Response:
        return _json(content)

    return answer


def _text(content: str) -> Any:
    """Return a handler that answers a text."""

    async def answer(request: Request) -> Response:
        return PlainTextResponse(content)

    return answer


async def _without_slash(request: Request) -> Response:
    """Lead to the page itself, by a relative path: a proxy may have put something before it."""
    page = request.scope["path"].strip("/")
    return RedirectResponse(f"../{page}", 308)


def _endpoint_route(service: Service, endpoint: Endpoint, held: HeldBytes) -> Route:
    path = endpoint.path.replace("}", ":path}")  # a hub id has slashes
    methods = ["GET"] if path != endpoint.path else ["GET", "POST"] if endpoint.get else ["POST"]
    return route(path, _Handler(service, endpoint, held), *methods)


class _Handler:
    """ASGI app of one endpoint. It holds the bytes of a request's body until the answer has been sent."""

    def __init__(self, service: Service, endpoint: Endpoint, held: HeldBytes):
        self._service, self._endpoint, self._held = service, endpoint, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Raises a RequestError, HTTPException, ClientGone."""
        with self._held.lease() as lease:
            response = await self._response(Request(scope, receive, send), lease)
            await response(scope, receive, send)

    async def _response(self, http_request: Request, lease: Lease) -> Response:
        if "" in http_request.path_params.values():
            raise HTTPException(404)
        body = None
        if http_request.method not in ("GET", "HEAD"):
            body = await read_body(http_request, self._service.config.max_body_bytes, lease)
        request = await request_of(self._endpoint, body, http_request.path_params, self._service.rules)
        if not self._endpoint.streams(request):
            answer = await _unless_gone(http_request, self._service.answer(request))
            kind = LongResponse if isinstance(answer, Filled) else Response
            return kind(answer.to_json(), headers=ignored_header(request.ignored), media_type="application/json")
        return EventStream(self._service, request, self._endpoint)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`. If the client closes the connection, cancel it. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type="application/json")


async def _on_request_error(request: Request, error: Any) -> Response:
    note_error(error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull | RateLimited) else {}
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = ACCEPTED
    if isinstance(error, RequestTooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read, but dropped, so that the answer arrives
        request.scope.setdefault("state", {})[DROP_ALL] = True
    return _json(error_body(request.scope["path"], error), error.http_status, headers)


async def _on_http_exception(request: Request, error: Any) -> Response:
    path, method = request.scope["path"][:200], request.method  # not request.url, which a Host can make invalid
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))  # they come from a set
    known: dict[int, RequestError] = {
        404: UnknownEndpoint(f"no route {path}: {_instead_of(request.app, path)}"),
        405: MethodNotAllowed(f"{path} does not take {method[:20]}: use {headers.get('Allow', 'POST')}"),
    }
    answer = known.get(error.status_code, InvalidRequest(str(error.detail)))
    note_error(answer)
    return _json(error_body(request.scope["path"], answer), error.status_code, headers)


def _instead_of(app: Starlette, path: str) -> str:
    """Return the routes that a client may have meant by a path: the nearest ones, or all."""
    paths = [path for path in (getattr(one, "path", "{") for one in app.routes) if not _NO_GUESS.search(path)]
    plain = re.sub("/+", "/", path).rstrip("/").lower()
    meant = [one for one in (plain, f"/v1{plain}", plain.removeprefix("/v1")) if one in paths]
    if near := list(dict.fromkeys(meant + get_close_matches(plain, paths, 3, NEAR))):
        return f"did you mean {' or '.join(near[:3])}?"
    return f"this server has {', '.join(ENDPOINTS)}, /health, /ready, /version, /metrics, /docs and /playground"


async def _on_client_gone(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # without a reader; the number is nginx's for this case


async def _on_exception(request: Request, error: Any) -> Response:
    note_error(error)
    failure = InternalError(f"the request failed: {type(error).__name__}")
    return _json(error_body(request.scope["path"], failure), 500)
