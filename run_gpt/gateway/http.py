"""The HTTP door: the FastAPI app with its routes, bounded bodies, server-sent events and errors in OpenAI's shape."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from run_gpt.api.answers import Body
from run_gpt.api.openai.response_events import ResponseEvent
from run_gpt.errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    QueueFull,
    RequestError,
    RequestTooLarge,
    UnknownEndpoint,
)
from run_gpt.gateway import openapi
from run_gpt.gateway.endpoints import ENDPOINTS, Endpoint
from run_gpt.gateway.playground import PLAYGROUND, add_playground
from run_gpt.gateway.record import note_error
from run_gpt.gateway.scrape import CONTENT_TYPE, scrape
from run_gpt.gateway.service import Service

log = logging.getLogger(__name__)
Result = TypeVar("Result")

DISCARDED_BODIES = 8
"""So many times the limit of a body that is too large is read, since a client that still writes reads no answer."""


class ClientGone(Exception):
    """The client closed its connection: nobody waits for the answer."""


def build_app(service: Service) -> FastAPI:
    """The app over `service`."""
    app = FastAPI(title="RunGPT", openapi_url=None, docs_url=None, redoc_url=None)
    about_us = {
        "name": "RunGPT",
        "version": version("rungpt"),
        "docs": "/docs",
        "playground": PLAYGROUND,
        "ready": "/ready",
    }
    document = openapi.describe(about_us["version"])

    for endpoint in ENDPOINTS.values():
        path = endpoint.path.replace("}", ":path}")  # a hub id has slashes
        methods = ["GET"] if path != endpoint.path else ["GET", "POST"] if endpoint.get else ["POST"]
        app.add_api_route(path, _handler(service, endpoint), methods=methods, name=endpoint.path)

    async def about() -> Response:
        return _json(about_us)

    async def health() -> Response:
        return _json({"status": "alive"})

    async def ready() -> Response:
        return _json(service.status(), 200 if service.ready else 503)

    async def metrics() -> Response:
        return Response(await scrape(service.models.replicas, service.metrics), media_type=CONTENT_TYPE)

    async def description() -> Response:
        return _json(document)

    async def docs() -> Response:
        return HTMLResponse(openapi.page(document))

    routes = {"/": about, "/health": health, "/ready": ready, "/openapi.json": description, "/docs": docs}
    for path, function in routes.items():
        app.add_api_route(path, function, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", metrics, methods=["GET", "HEAD"], response_model=None)
    add_playground(app)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientGone, _on_client_gone)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(Exception, _on_exception)
    return app


def _handler(service: Service, endpoint: Endpoint) -> Any:
    async def handle(http_request: Request) -> Response:
        body = await read_body(http_request, service.config.max_body_bytes)
        fields = {} if http_request.method == "GET" else parse_json(body)
        request = _parse(endpoint, {**fields, **http_request.path_params})
        if not endpoint.streams(request):
            answer = await _unless_gone(http_request, service.answer(request))
            return Response(answer.to_json(), media_type="application/json")
        events = service.stream(request)
        try:
            first = await _unless_gone(http_request, cast("Any", anext(events)))
        except BaseException:
            await cast("Any", events).aclose()
            raise
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        stream = _sse(service, first, events, endpoint.last_line)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    return handle


async def read_body(request: Request, limit: int) -> bytes:
    """The body of at most `limit` bytes, checked while it is read, whatever type it says it has.

    Raises RequestTooLarge, which gives both numbers.
    """
    body, received = bytearray(), 0
    told = request.headers.get("content-length", "")
    too_large = told.isdecimal() and int(told) > limit
    async for chunk in request.stream():
        received += len(chunk)
        too_large = too_large or received > limit
        if not too_large:
            body += chunk
        elif received > DISCARDED_BODIES * limit:
            break
    if too_large:
        raise RequestTooLarge(f"the body has {told or f'{received} or more'} bytes, the limit is {limit} bytes")
    return bytes(body)


def _parse(endpoint: Endpoint, fields: dict[str, Any]) -> Any:
    try:
        return endpoint.request.parse(fields, stream=endpoint.answer is None)
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest("the body is not a request: it is nested too deeply")


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidRequest, which says what is wrong and where."""
    try:
        data = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"the body is not JSON: {error.msg} at {where}") from None
    except ValueError as error:  # not UTF-8, a number of thousands of digits, NaN
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {_json_kind(data)}")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _json_kind(data: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(data), "a number")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client closes the connection. Raises ClientGone then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _sse(
    service: Service, first: Body, events: AsyncIterator[Body], last_line: str | None
) -> AsyncIterator[bytes]:
    with service.writing():  # until the last event is written
        async with aclosing(cast("Any", events)):
            try:
                yield data_event(first)
                async for event in events:
                    yield data_event(event)
                if last_line is not None:
                    yield f"data: {last_line}\n\n".encode()
            except RequestError as error:
                yield error_event(error)
            except Exception as error:
                log.exception("a stream failed")
                yield error_event(InternalError(f"the stream failed: {type(error).__name__}"))


def data_event(body: Body) -> bytes:
    """One answer as a server-sent event; one that has a type is named by it."""
    kind = f"event: {body.type}\n" if isinstance(body, ResponseEvent) else ""
    return f"{kind}data: {body.to_json()}\n\n".encode()


def error_event(error: RequestError) -> bytes:
    """An error as the last server-sent event of a stream."""
    return b"event: error\ndata: " + json.dumps({"error": error.to_dict()}).encode() + b"\n\n"


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type="application/json")


async def _on_request_error(request: Request, error: Any) -> Response:
    note_error(error)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else {}
    if isinstance(error, RequestTooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read
    return _json({"error": error.to_dict()}, error.http_status, headers)


async def _on_http_exception(request: Request, error: Any) -> Response:
    path, method = request.url.path, request.method
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
    return Response(status_code=499)  # nobody reads it; nginx's number for it


async def _on_exception(request: Request, error: Any) -> Response:
    note_error(error)
    return _json({"error": InternalError(f"the request failed: {type(error).__name__}").to_dict()}, 500)
