"""Server-sent events: the text of a body, an error or a comment in a stream of HTTP."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from run_gpt.api.answers import Body

COMMENT = b": \n\n"
"""A line that readers skip. It keeps proxies from closing an idle connection."""

TEXT = secrets.token_hex(16)
"""Placeholder for the text in the body that a PlainEvent is made from; random, so that no other text equals it."""
NUMBERS = tuple(10**17 + secrets.randbelow(10**17) for _ in range(2))
"""Placeholders for the numbers."""

_escape = msgspec.json.Encoder().encode


def body_event(body: Body) -> bytes:
    """Write a body as an event; a body's type becomes the name of the event."""
    kind = getattr(body, "type", None)
    name = "" if kind is None else f"event: {kind}\n"
    return f"{name}data: {body.to_json()}\n\n".encode()


def data_event(data: str) -> bytes:
    """Write a line that is not JSON as an event."""
    return f"data: {data}\n\n".encode()


def error_event(body: dict[str, Any]) -> bytes:
    """Write the body of an error's answer as the last event of a stream."""
    return b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"


@dataclass(frozen=True)
class StreamForm:
    """Form of the streams of an API over HTTP."""

    content_type: str
    write: Callable[[Body], bytes]
    """Writer of an event."""
    error: Callable[[dict[str, Any]], bytes]
    """Writer of the body of an error's answer, as the last event."""
    comment: bytes = b""
    """Bytes that readers skip, which keep proxies from closing an idle connection; empty: there are none."""


SSE = StreamForm("text/event-stream; charset=utf-8", body_event, error_event, COMMENT)
LINES = StreamForm(
    "application/x-ndjson",
    lambda body: body.to_json().encode() + b"\n",
    lambda error: json.dumps(error).encode() + b"\n",
)


class PlainEvent:
    """An event in which only a text and some numbers change. Pydantic writes the rest, once."""

    def __init__(self, marked: Body, form: StreamForm = SSE):
        """Take `marked`: a body with TEXT, and with those of NUMBERS that stand for changing numbers."""
        written = form.write(marked).replace(b"%", b"%%").replace(f'"{TEXT}"'.encode(), b"%(text)b")
        for name, number in zip((b"first", b"second"), NUMBERS, strict=True):
            written = written.replace(str(number).encode(), b"%(" + name + b")d")
        self._form = written

    def write(self, text: str, first: int = 0, second: int = 0) -> bytes:
        """Write the event with this text, and with these numbers in place of NUMBERS."""
        return self._form % {b"text": _escape(text), b"first": first, b"second": second}
