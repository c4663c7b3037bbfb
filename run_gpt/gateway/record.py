"""What is known of the request that is under way, on either door: for its line in the log, and for who counts by key.

The door that takes a request makes its record `current`; what runs for the request adds what it knows.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from run_gpt.errors import InternalError, RequestError
from run_gpt.process import logs, request_ids

log = logging.getLogger(__name__)

MOST_TEXT = 200
"""Characters of a text that the client chose."""


def new_request_id() -> str:
    """An id that no other request has."""
    return f"rungpt-{secrets.token_hex(12)}"


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
    request_id: str = field(default_factory=new_request_id)
    """Of the first request; a gRPC call may hold several."""
    client_id: str | None = None
    """What the client calls it."""
    requests: int = 0
    error: str | None = None
    """The code of the error that a request ended with, which a stream's status does not say."""
    started: float = field(default_factory=time.perf_counter)

    def take_client_id(self, sent: str | None) -> None:
        """Take what the client sent to name its request. Raises InvalidRequest for what may not stand in a log."""
        self.client_id = None if sent is None else request_ids.check(sent)

    @property
    def shown_id(self) -> str:
        """What the answer says that its request is called: as the client calls it, else its own id."""
        return self.client_id or self.request_id

    def facts(self, status: str) -> dict[str, Any]:
        """What the log says of a request that ends now; None where there is nothing to say."""
        return {
            # Both are from outside: they must not make lines of their own, nor long ones.
            "method": quote(self.method)[:20],
            "route": quote(self.route, errors="replace")[:MOST_TEXT],
            "status": status,
            "seconds": round(time.perf_counter() - self.started, 3),
            "key": self.key,
            "endpoint": self.endpoint,
            "user": None if self.user is None else self.user[:MOST_TEXT],
            "id": self.request_id,
            "client_id": self.client_id,
            "requests": self.requests if self.requests > 1 else None,
            "error": self.error,
        }

    def write(self, status: str) -> None:
        """Write its line: it has ended."""
        facts = self.facts(status)
        log.info("%s", line_of(facts), extra={"fields": facts})


Count = Callable[[Record, str], None]
"""What counts a request that has ended, with its status: see GatewayMetrics."""

current: ContextVar[Record | None] = ContextVar("current", default=None)
"""The record of the request that this task works for."""


def line_of(facts: dict[str, Any]) -> str:
    """The line of the log, as people read it, that says this of a request."""
    first = [facts["method"], facts["route"], facts["status"], f"{facts['seconds']:.3f}s"]
    shown = facts | {"user": None if facts["user"] is None else json.dumps(facts["user"])}
    rest = [f"{name}={value}" for name, value in list(shown.items())[len(first) :] if value is not None]
    return " ".join([*first, *rest])


def begin(record: Record) -> None:
    """What runs from now on in this task, and in those that it starts, runs for this record's request."""
    current.set(record)
    request_ids.current.set(record.shown_id)


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
    log.setLevel(logging.INFO)
    if logs.is_json():
        return  # they go the way of all lines
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    log.propagate = False
