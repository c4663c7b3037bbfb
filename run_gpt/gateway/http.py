"""The HTTP app: its routes, and errors in OpenAI's shape."""

import asyncio
import json
import logging
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from run_gpt.api.endpoints import ENDPOINTS, Endpoint
from run_gpt.api.fields import ignored_header
from run_gpt.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    QueueFull,
    RateLimited,
    RequestError,
    RequestTooLarge,
    UnknownEndpoint,
)
from run_gpt.gateway import openapi
from run_gpt.gateway.bodies import read_body, request_of
from run_gpt.gateway.connection import DROP_ALL
from run_gpt.gateway.event_stream import ClientGone, EventStream, until_gone
from run_gpt.gateway.playground import PLAYGROUND, playground_files
from run_gpt.gateway.record import current_rights, note_error
from run_gpt.gateway.scrape import CONTENT_TYPE, scrape
from run_gpt.gateway.service import Service

log = logging.getLogger(__name__)
Result = TypeVar("Result")

STRANGER = "rungpt.stranger"
"""Name in a request's scope; True there: it has no valid key, and the server has keys."""


def build_app(service: Service) -> Starlette:
    """Build the app over `service`."""
    about_us = {
        "name": "RunGPT",
        "version": version("rungpt"),
        "docs": "/docs",
        "playground": PLAYGROUND,
        "ready": "/ready",
    }
    document = openapi.describe(about_us["version"])

    async def about(request: Request) -> Response:
        return _json(about_us)

    async def health(request: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(request: Request) -> Response:
        return _json(service.status(to_stranger=request.scope.get(STRANGER, False)), 200 if service.ready else 503)

    async def metrics(request: Request) -> Response:
        current_rights().check_metrics()
        return Response(await scrape(service.models.replicas, service.metrics), media_type=CONTENT_TYPE)

    async def description(request: Request) -> Response:
        return _json(document)

    async def docs(request: Request) -> Response:
        return HTMLResponse(openapi.page(document))

    others = {"/": about, "/health": health, "/ready": ready, "/openapi.json": description, "/docs": docs}
    routes = [
        *(_endpoint_route(service, endpoint) for endpoint in ENDPOINTS.values()),
        *(route(path, function, "GET") for path, function in others.items()),
        route("/metrics", metrics, "GET", "HEAD"),
        *(route(path, function, "GET") for path, function in playground_files().items()),
    ]
    handlers: dict[Any, Any] = {
        RequestError: _on_request_error,
        HTTPException: _on_http_exception,
        ClientGone: _on_client_gone,
        ClientDisconnect: _on_client_gone,
        Exception: _on_exception,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def route(path: str, function: Any, *methods: str) -> Route:
    """Return a route that takes these methods and no other."""
    made = Route(path, function, methods=methods)
    made.methods = set(methods)  # Starlette adds HEAD to GET
    return made


def _endpoint_route(service: Service, endpoint: Endpoint) -> Route:
    path = endpoint.path.replace("}", ":path}")  # a hub id has slashes
    methods = ["GET"] if path != endpoint.path else ["GET", "POST"] if endpoint.get else ["POST"]
    return route(path, _handler(service, endpoint), *methods)


def _handler(service: Service, endpoint: Endpoint) -> Any:
    async def handle(http_request: Request) -> Response:
        get = http_request.method == "GET"
        body = None if get else await read_body(http_request, service.config.max_body_bytes)
        request = await request_of(endpoint, body, http_request.path_params, service.rules)
        if not endpoint.streams(request):
            answer = await _unless_gone(http_request, service.answer(request))
            return Response(answer.to_json(), headers=ignored_header(request.ignored), media_type="application/json")
        return EventStream(service, request, endpoint.last_line)

    return handle


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
    if isinstance(error, RequestTooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read, but dropped, so that the answer arrives
        request.scope.setdefault("state", {})[DROP_ALL] = True
    return _json({"error": error.to_dict()}, error.http_status, headers)


async def _on_http_exception(request: Request, error: Any) -> Response:
    path, method = request.scope["path"][:200], request.method  # not request.url, which a Host can make invalid
    known: dict[int, RequestError] = {
        404: UnknownEndpoint(
            f"no route {path}: this server has {', '.join(ENDPOINTS)}, /health, /ready, /metrics, /docs and /playground"
        ),
        405: MethodNotAllowed(f"{path} does not take {method}: use {(error.headers or {}).get('Allow', 'POST')}"),
    }
    answer = known.get(error.status_code, InvalidRequest(str(error.detail)))
    note_error(answer)
    return _json({"error": answer.to_dict()}, error.status_code, error.headers)


async def _on_client_gone(request: Request, error: Any) -> Response:
    return Response(status_code=499)  # without a reader; the number is nginx's for this case


async def _on_exception(request: Request, error: Any) -> Response:
    note_error(error)
    return _json({"error": InternalError(f"the request failed: {type(error).__name__}").to_dict()}, 500)
