"""Server-sent events: how a body, an error or a comment is written in a stream of HTTP."""

import json
import secrets

import msgspec

from run_gpt.api.answers import Body
from run_gpt.errors import RequestError

COMMENT = b": \n\n"
"""A line that readers skip, and that keeps proxies from closing an idle connection."""

TEXT = secrets.token_hex(16)
"""Stands for the text in a body of which a PlainEvent is made; random, so that no other text of it is the same."""
NUMBERS = tuple(10**17 + secrets.randbelow(10**17) for _ in range(2))
"""Stand for the numbers."""

_escape = msgspec.json.Encoder().encode


def body_event(body: Body) -> bytes:
    """Write a body as an event; one that has a type is named by it."""
    kind = getattr(body, "type", None)
    name = "" if kind is None else f"event: {kind}\n"
    return f"{name}data: {body.to_json()}\n\n".encode()


def data_event(data: str) -> bytes:
    """Write a line that is no JSON as an event."""
    return f"data: {data}\n\n".encode()


def error_event(error: RequestError) -> bytes:
    """Write an error as the last event of a stream."""
    return b"event: error\ndata: " + json.dumps({"error": error.to_dict()}).encode() + b"\n\n"


class PlainEvent:
    """An event of which only a text and some numbers change: all else is written once, by pydantic."""

    def __init__(self, marked: Body):
        """`marked`: a body that has TEXT once, and of NUMBERS those that change."""
        form = body_event(marked).replace(b"%", b"%%").replace(f'"{TEXT}"'.encode(), b"%(text)b")
        for name, number in zip((b"first", b"second"), NUMBERS, strict=True):
            form = form.replace(str(number).encode(), b"%(" + name + b")d")
        self._form = form

    def write(self, text: str, first: int = 0, second: int = 0) -> bytes:
        """Write the event with this text, and these numbers for the marks that it has of NUMBERS."""
        return self._form % {b"text": _escape(text), b"first": first, b"second": second}
