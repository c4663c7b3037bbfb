"""The checks before the HTTP app: each request's key and host, the origins of web pages, and the line in the log."""

import asyncio
import logging
import re
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from run_gpt.api.error_forms import error_body
from run_gpt.api.fields import HEADER as IGNORED
from run_gpt.config import GatewayConfig
from run_gpt.errors import AuthenticationError, Forbidden, InternalError, InvalidRequest, RequestError, SetupError
from run_gpt.gateway.guesses import client_address
from run_gpt.gateway.hosts import Hosts
from run_gpt.gateway.http import STRANGER
from run_gpt.gateway.keys import API_KEY_HEADER, Keys, sent_key
from run_gpt.gateway.record import Count, Record, admit, begin, current, note_error
from run_gpt.process import request_ids

log = logging.getLogger(__name__)

OPEN_ROUTES = ("/health", "/ready", "/version")
"""Routes that need no key for a GET or HEAD and are neither logged nor counted: monitoring requests them often."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(:[0-9]{1,5})?", re.ASCII)
DISCARD_SECONDS = 5.0
"""Time that a client whose request is refused gets to send its body; before that it reads no answer."""


def guarded(app: ASGIApp, config: GatewayConfig, keys: Keys | None, count: Count) -> ASGIApp:
    """Return the app behind all configured checks. Origins are checked before keys, so that pages can read a refusal.

    The configuration's origins have passed `check_origins`. `count` gets each request when it has ended.
    """
    if keys is not None:
        app = KeyCheck(app, keys, config.max_body_bytes)
    hosts = Hosts(config.allowed_hosts, keyed=keys is not None)
    app = OriginCheck(app, config.cors_origins, config.max_body_bytes)
    if config.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After", request_ids.HEADER, IGNORED),
        )
    app = HostCheck(app, hosts, config.max_body_bytes)
    return Recording(app, config, count)


def check_origins(origins: Sequence[str]) -> None:
    """Raise SetupError for a value that no browser sends as an origin, and that so would never match."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise SetupError(f"--cors-origin {origin}: write SCHEME://HOST or SCHEME://HOST:PORT in lower case, or *")


class Recording:
    """Middleware that gives each request its record, and counts and logs it when it ends, except for OPEN_ROUTES.

    The answer has the request id in its headers, and a malformed id is refused. An unexpected exception ends here: the
    ASGI server would close the connection after an answer that does not say so.
    """

    def __init__(self, app: ASGIApp, config: GatewayConfig, count: Count):
        self.app = app
        self._config, self._count = config, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = None
        if not is_open(scope):
            record = Record(method=scope["method"], route=scope["path"], address=_address(scope))
        status, complete = "-", False

        async def noting(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if record is not None:
                    MutableHeaders(scope=message)[request_ids.HEADER] = record.shown_id
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._answer(record, scope, receive, noting)
        except Exception as error:
            log.exception("a request failed")
            if status == "-":
                failure = InternalError(f"the request failed: {type(error).__name__}")
                await _refuse(failure, {}, self._config.max_body_bytes, scope, receive, noting)
            elif not complete:
                raise  # cuts the connection
        finally:
            if record is not None:
                self._end(record, status, complete=complete)

    async def _answer(self, record: Record | None, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None
        if record is not None:
            try:
                record.take_client_id(Headers(scope=scope).get(request_ids.HEADER))
            except InvalidRequest as error:
                refusal = error
            begin(record)  # each request has a task, and so a context, of its own
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await _refuse(refusal, {}, self._config.max_body_bytes, scope, receive, send)

    def _end(self, record: Record, status: str, *, complete: bool) -> None:
        if not complete:
            record.error = record.error or "cut_off"
        self._count(record, status)
        if self._config.log_requests:
            record.write(status)


class HostCheck:
    """Middleware that refuses requests for a host that this server is not: see Hosts."""

    def __init__(self, app: ASGIApp, hosts: Hosts, max_body_bytes: int):
        self.app = app
        self.hosts = hosts
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            if scope["type"] == "http":
                self.hosts.check(scope)
        except RequestError as error:
            await _refuse(error, {}, self.max_body_bytes, scope, receive, send)
            return
        await self.app(scope, receive, send)


class OriginCheck:
    """Middleware that answers 403 to requests of web pages whose origin is neither the server's own nor allowed.

    Without CORS a browser keeps the answer from such a page, but sends the request all the same: to a server on the
    user's machine, and with the password that it stores for Basic.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], max_body_bytes: int):
        self.app = app
        self.allowed = allowed
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        host = headers.get("host", "").lower()
        own = not origin or origin in (f"http://{host}", f"https://{host}")
        if scope["type"] != "http" or own or origin in self.allowed or "*" in self.allowed or is_open(scope):
            await self.app(scope, receive, send)
            return
        error = Forbidden(f"pages of {origin[:100]} may not use this server: allow it with --cors-origin")
        await _refuse(error, {}, self.max_body_bytes, scope, receive, send)


class KeyCheck:
    """Middleware that answers 401 to every request without a valid key, on every route but OPEN_ROUTES.

    There the app finds True in the scope, as STRANGER, if there is no valid key.
    """

    def __init__(self, app: ASGIApp, keys: Keys, max_body_bytes: int):
        self.app = app
        self.keys = keys
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if is_open(scope):
            await self.app({**scope, STRANGER: await self._is_stranger(scope)}, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            name, rights = await self.keys.admit(_sent(headers), _address(scope))
        except AuthenticationError as error:
            by_browser = scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", "")
            # A browser then asks its user for a password.
            sent = {"WWW-Authenticate": 'Basic realm="RunGPT", charset="UTF-8"' if by_browser else "Bearer"}
            await _refuse(error, sent, self.max_body_bytes, scope, receive, send)
            return
        if (record := current.get()) is not None:
            admit(record, name, rights)
        await self.app(scope, receive, send)

    async def _is_stranger(self, scope: Scope) -> bool:
        """Return True for a request of an open route without a valid key."""
        try:
            await self.keys.admit(_sent(Headers(scope=scope)), _address(scope))
        except AuthenticationError:
            return True
        return False


async def _refuse(
    error: RequestError, headers: dict[str, str], max_body_bytes: int, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer with the error, once the request's body has been read as far as `_discard` reads it."""
    note_error(error)
    if not await _discard(Headers(scope=scope), receive, max_body_bytes):
        headers["Connection"] = "close"  # the rest of the body is not read
    await JSONResponse(error_body(scope["path"], error), error.http_status, headers)(scope, receive, send)


def _sent(headers: Headers) -> str:
    """Return the key in a request's headers. Raises AuthenticationError."""
    return sent_key(headers.getlist("authorization"), headers.getlist(API_KEY_HEADER))


def _address(scope: Scope) -> str:
    return client_address(scope["client"][0] if scope.get("client") else None)


def is_open(scope: Scope) -> bool:
    """Return True when the request needs no key."""
    return scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_ROUTES


async def _discard(headers: Headers, receive: Receive, limit: int) -> bool:
    """Read the body of a refused request, within `limit` bytes and DISCARD_SECONDS. Return True if that was all."""
    if "content-length" not in headers and "transfer-encoding" not in headers:
        return True
    if "expect" in headers:
        return False  # the client waits for 100 Continue before it sends its body
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
