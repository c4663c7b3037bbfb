"""What stands before the HTTP app: the key of each request, the origins of web pages, and the line in the log."""

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from run_gpt.config import GatewayConfig
from run_gpt.errors import AuthenticationError, SetupError
from run_gpt.gateway.keys import Keys, sent_key
from run_gpt.gateway.record import Record, current

OPEN_ROUTES = ("/health", "/ready")
"""They need no key for a GET, and are not in the log: what watches a server asks them all the time."""
DISCARD_SECONDS = 5.0
"""Time that a client whose request is refused gets to send its body, without which it reads no answer."""


def guarded(app: ASGIApp, config: GatewayConfig, keys: Keys | None) -> ASGIApp:
    """The app behind all that is asked for. The origins stand before the keys, so that pages can read a refusal.

    The configuration's origins have passed `check_origins`.
    """
    if keys is not None:
        app = KeyCheck(app, keys, config)
    if config.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After",),
        )
    return Recording(app, log_requests=config.log_requests)


def check_origins(origins: Sequence[str]) -> None:
    """Raises SetupError for what no browser sends as an origin, and which would never be let in."""
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}".lower()):
            raise SetupError(f"--cors-origin {origin}: write SCHEME://HOST or SCHEME://HOST:PORT in lower case, or *")


class Recording:
    """Gives each request its record, and writes the record's line when the request ends."""

    def __init__(self, app: ASGIApp, *, log_requests: bool):
        self.app = app
        self.log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(method=scope["method"], route=scope["path"])
        current.set(record)  # each request has a task, and so a context, of its own
        if not self.log_requests or is_open(scope):
            await self.app(scope, receive, send)
            return
        status, complete = "-", False

        async def noting(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            if not complete:
                record.error = record.error or "cut_off"
            record.write(status)


class KeyCheck:
    """Answers 401 to every request without a key, whatever its route is, but for OPEN_ROUTES."""

    def __init__(self, app: ASGIApp, keys: Keys, config: GatewayConfig):
        self.app = app
        self.keys = keys
        self.config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or is_open(scope):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_page(headers)
            name = self.keys.check(sent_key(headers.get("authorization")))
        except AuthenticationError as error:
            await self._refuse(error, scope, receive, send)
            return
        if (record := current.get()) is not None:
            record.key = name
        await self.app(scope, receive, send)

    def _check_page(self, headers: Headers) -> None:
        """A browser sends a password that it has once been told with other sites' requests, too."""
        origin = headers.get("origin")
        if origin is None or not headers.get("authorization", "").lower().startswith("basic "):
            return
        if urlsplit(origin).netloc != headers.get("host") and origin not in self.config.cors_origins:
            raise AuthenticationError(
                "a page of another origin cannot use the key that the browser keeps: send `Authorization: Bearer KEY`"
            )

    async def _refuse(self, error: AuthenticationError, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        by_browser = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        # A browser asks its user for a password then.
        sent = {"WWW-Authenticate": 'Basic realm="RunGPT", charset="UTF-8"' if by_browser else "Bearer"}
        if not await _discard(headers, receive, self.config.max_body_bytes):
            sent["Connection"] = "close"  # the rest of the body is not read
        await JSONResponse({"error": error.to_dict()}, error.http_status, sent)(scope, receive, send)


def is_open(scope: Scope) -> bool:
    """Whether the request needs no key."""
    return scope["method"] == "GET" and scope["path"] in OPEN_ROUTES


async def _discard(headers: Headers, receive: Receive, limit: int) -> bool:
    """Read the body of a request that is refused, within `limit` bytes and DISCARD_SECONDS; whether that was all."""
    if "content-length" not in headers and "transfer-encoding" not in headers:
        return True
    if "expect" in headers:
        return False  # the client waits for a word before it sends its body
    received = 0
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while received <= limit:
                message = await receive()
                received += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return True
    except TimeoutError:
        return False
    return False
