"""The record of the running request, on either port: for its line in the log, and for counts by key.

The port that takes a request makes its record `current`; the code that runs for the request adds its facts.
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

from run_gpt.errors import AuthenticationError, InternalError, RequestError
from run_gpt.gateway.rights import EVERYTHING, Rights
from run_gpt.process import logs, request_ids, tenants

log = logging.getLogger(__name__)

MOST_TEXT = 200
"""Most characters of a text that the client chose."""


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"rungpt-{secrets.token_hex(12)}"


@dataclass(kw_only=True)
class Record:
    """One HTTP request or gRPC call. It must contain no part of prompts and answers, and no key."""

    method: str
    """HTTP method, or `gRPC`."""
    route: str
    """Path: an HTTP route, or a gRPC method."""
    key: str | None = None
    """Name of the key that it was sent with."""
    rights: Rights = EVERYTHING
    """Rights of that key."""
    address: str | None = None
    """IP address that it came from; the log has it for a wrong key only."""
    admitted: bool = False
    """True when one of its requests was within the limits of its key; see Limits."""
    endpoint: str | None = None
    """Endpoint of a gRPC call, such as `/generate`."""
    user: str | None = None
    """User that the client names in its request."""
    request_id: str = field(default_factory=new_request_id)
    """Id of the first request; a gRPC call may hold several."""
    client_id: str | None = None
    """Id that the client gave to its request."""
    requests: int = 0
    error: str | None = None
    """Code of the error that a request ended with; the status of a stream does not show it."""
    started: float = field(default_factory=time.perf_counter)

    def take_client_id(self, sent: str | None) -> None:
        """Take the id that the client sent. Raises InvalidRequest for one that must not appear in a log."""
        self.client_id = None if sent is None else request_ids.check(sent)

    @property
    def shown_id(self) -> str:
        """Request id that the answer carries: the client's, else its own."""
        return self.client_id or self.request_id

    def facts(self, status: str) -> dict[str, Any]:
        """Return the log's fields for a request that ends now; None for a field without a value."""
        return {
            # Both come from outside: they must not add lines, nor make long ones.
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
            "address": self.address if self.error == AuthenticationError.code else None,
        }

    def write(self, status: str) -> None:
        """Write its line at its end."""
        facts = self.facts(status)
        log.info("%s", line_of(facts), extra={"fields": facts})


Count = Callable[[Record, str], None]
"""Function that counts a request that has ended, with its status: see GatewayMetrics."""

current: ContextVar[Record | None] = ContextVar("current", default=None)
"""Record of the request that this task works for."""


def line_of(facts: dict[str, Any]) -> str:
    """Return the plain line of the log with these fields of a request."""
    first = [facts["method"], facts["route"], facts["status"], f"{facts['seconds']:.3f}s"]
    shown = facts | {"user": None if facts["user"] is None else json.dumps(facts["user"])}
    rest = [f"{name}={value}" for name, value in list(shown.items())[len(first) :] if value is not None]
    return " ".join([*first, *rest])


def begin(record: Record) -> None:
    """Make this record current in this task, and in the tasks that it starts from now on."""
    current.set(record)
    request_ids.current.set(record.shown_id)


def admit(record: Record, key: str, rights: Rights) -> None:
    """Note the name of the key that the record's request was sent with; its tenant is current in this task, too."""
    record.key, record.rights = key, rights
    tenants.current.set(key)


def current_rights() -> Rights:
    """Return the rights of the key that the current task's request was sent with."""
    record = current.get()
    return EVERYTHING if record is None else record.rights


def note_endpoint(path: str) -> None:
    """Note the endpoint of the current record's call."""
    if (record := current.get()) is not None:
        record.endpoint = path


def note_user(user: str | None) -> None:
    """Note the client's user in the current record."""
    if (record := current.get()) is not None:
        record.user = user


def note_error(error: Exception) -> None:
    """Note the error that a request of the current record ended with."""
    if (record := current.get()) is not None:
        record.error = (error if isinstance(error, RequestError) else InternalError).code


def open_log() -> None:
    """Write the records' lines to stderr, independently of the level of this process's other logs."""
    log.setLevel(logging.INFO)
    if logs.is_json():
        return  # they are written like all other lines
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
    log.propagate = False
