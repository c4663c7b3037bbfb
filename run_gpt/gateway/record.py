"""What is known of the request that is under way, on either door: for its line in the log, and for who counts by key.

The door that takes a request makes its record `current`; what runs for the request adds what it knows.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import quote

from run_gpt.errors import InternalError, InvalidRequest, RequestError

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
"""The header by which a client names a request, and by which each answer says what its request is called."""
MOST_TEXT = 200
"""Characters of a text that the client chose."""


@dataclass(kw_only=True)
class Record:
    """One HTTP request or gRPC call. Nothing of prompts and answers, and no key, may stand in it."""

    method: str
    """`POST`, or `gRPC`."""
    route: str
    """The path: an HTTP route, or a gRPC method."""
    key: str | None = None
    """The name of the key that it came with."""
    endpoint: str | None = None
    """What a gRPC call is for, such as `/generate`."""
    user: str | None = None
    """Whom the client says that it asks for."""
    request_id: str | None = None
    """The first one; a gRPC call may hold several requests."""
    client_id: str | None = None
    """What the client calls it."""
    requests: int = 0
    error: str | None = None
    """The code of the error that a request ended with, which a stream's status does not say."""
    started: float = field(default_factory=time.perf_counter)

    def take_client_id(self, sent: str | None) -> None:
        """Take what the client sent to name its request. Raises InvalidRequest for what may not stand in a log."""
        if sent is not None and not re.fullmatch(r"[!-~]{1,128}", sent):
            raise InvalidRequest(f"{REQUEST_ID}: up to 128 printable ASCII characters without spaces", param=REQUEST_ID)
        self.client_id = sent

    def shown_id(self) -> str:
        """What the answer says that its request is called: as the client calls it, else its own id, made if need be."""
        self.request_id = self.request_id or new_request_id()
        return self.client_id or self.request_id

    def line(self, status: str) -> str:
        """The line of the log for a request that ends now."""
        seconds = time.perf_counter() - self.started
        # Both are from outside: they must not make lines of their own, nor long ones.
        method, route = quote(self.method)[:20], quote(self.route, errors="replace")[:MOST_TEXT]
        told = {
            "key": self.key,
            "endpoint": self.endpoint,
            "user": None if self.user is None else json.dumps(self.user[:MOST_TEXT]),
            "id": self.request_id,
            "client_id": self.client_id,
            "requests": self.requests if self.requests > 1 else None,
            "error": self.error,
        }
        facts = [f"{name}={value}" for name, value in told.items() if value is not None]
        return " ".join([method, route, status, f"{seconds:.3f}s", *facts])

    def write(self, status: str) -> None:
        """Write its line: it has ended."""
        log.info("%s", self.line(status))


Count = Callable[[Record, str], None]
"""What counts a request that has ended, with its status: see GatewayMetrics."""

current: ContextVar[Record | None] = ContextVar("current", default=None)
"""The record of the request that this task works for."""


def new_request_id() -> str:
    """An id that no other request has."""
    return f"rungpt-{secrets.token_hex(12)}"


def note_request(request_id: str) -> None:
    """One more request of this record has this id."""
    if (record := current.get()) is not None:
        record.request_id = record.request_id or request_id
        record.requests += 1


def note_endpoint(path: str) -> None:
    """The record is of a call of this endpoint."""
    if (record := current.get()) is not None:
        record.endpoint = path


def note_user(user: str | None) -> None:
    """The record is of a request for this user of the client's."""
    if (record := current.get()) is not None:
        record.user = user


def note_error(error: Exception) -> None:
    """A request of this record ended with this error."""
    if (record := current.get()) is not None:
        record.error = (error if isinstance(error, RequestError) else InternalError).code


def open_log() -> None:
    """Let the records' lines out to stderr, whatever the level of the other logs of this process is."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
