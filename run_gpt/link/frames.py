"""Frames of the inner wire: lists of messages in MessagePack, one frame for each engine step or burst of requests.

A call begins with a `Hello` and a `Welcome`, frames of their own, which name the version of each end. Then
each `Start` gets any number of `Begun`, `Next` and `Body`, and exactly one end: `Done` or `Failed`. After `Cancel`
no further message for that request is read.
"""

import msgspec
from msgspec import Struct

from run_gpt.api.pieces import Head, Parts, Piece

VERSION = 3
"""Version of the frames. Raise it with every change of a message or a `Piece` that an older end would misread."""
METHOD = "/rungpt.Link/Connect"
TOKEN = "rungpt-token"
"""Metadata of a call with the executor's token."""


class Hello(Struct, array_like=True, frozen=True):
    """First message of a gateway."""

    version: int


class Start(Struct, array_like=True, frozen=True, tag=1):
    """A request."""

    stream: int
    """Number of the request on this call."""
    path: str
    body: bytes
    """The native request as JSON; empty for a path that takes none."""
    request_id: str
    """Name of the request, for the log and for errors."""
    trace: dict[str, str] = {}
    """Context of the trace that the request belongs to, as its headers carry it."""
    tenant: str = ""
    """Name of the key that the request was sent with; empty without keys."""


class Cancel(Struct, array_like=True, frozen=True, tag=2):
    """Cancellation of a request."""

    stream: int


class Welcome(Struct, array_like=True, frozen=True):
    """First message of an executor."""

    version: int


class Begun(Struct, array_like=True, frozen=True, tag=1):
    """The head of a streamed text."""

    stream: int
    head: Head


class Next(Struct, array_like=True, frozen=True, tag=2):
    """More of a streamed text."""

    stream: int
    piece: Piece


class Body(Struct, array_like=True, frozen=True, tag=3):
    """A body of JSON: a whole answer, or an event that is no piece of text."""

    stream: int
    json: bytes
    parts: list[Parts] = []
    """See api.pieces.Whole."""


class Done(Struct, array_like=True, frozen=True, tag=4):
    """Successful end of a request."""

    stream: int


class Failed(Struct, array_like=True, frozen=True, tag=5):
    """End of a request with this error, as `RequestError.to_dict` writes it; of QueueFull with `retry_after`."""

    stream: int
    error: dict[str, str | None]


Asking = Start | Cancel
Answering = Begun | Next | Body | Done | Failed

encode = msgspec.msgpack.Encoder().encode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_welcome = msgspec.msgpack.Decoder(Welcome).decode
decode_asking = msgspec.msgpack.Decoder(list[Asking]).decode
decode_answering = msgspec.msgpack.Decoder(list[Answering]).decode
