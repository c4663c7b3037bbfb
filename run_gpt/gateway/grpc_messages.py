"""Parsing of the gRPC port's messages: their parts are counted first, and long ones are handled in a thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from run_gpt.errors import InvalidRequest

MOST_DOCUMENTS = 256
"""Most documents of one message."""
MOST_VALUES = 160 * 1024
"""Most values of one message, such as token ids: each is an object of its own while it is parsed."""
LONG_BYTES = 16 * 1024
"""Size of a message from which on it is handled in a thread."""
MOST_ON_LOOP = 4
"""Most documents that are handled on the event loop."""

_TINY = 5
"""Bytes of a part that is not looked into: a token id has this size, and no more than two parts would fit."""
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_threads = ThreadPoolExecutor(2, "grpc-messages")

T = TypeVar("T")


async def handled(work: Callable[[], T], *, long: bool) -> T:
    """Return `work()`, called in a thread if it is `long`: then other requests go on meanwhile."""
    if not long:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, copy_context().run, work)


def is_long(message: bytes) -> bool:
    """Return True when the message may take long to parse."""
    return len(message) > LONG_BYTES


def parse(kind: Any, message: bytes) -> Any:
    """Return the message of this class. Raises InvalidRequest for one that is malformed or has too many values."""
    try:
        check_values(message, kind.DESCRIPTOR)
        return kind.FromString(message)
    except DecodeError as error:
        raise InvalidRequest(f"the message is not a {kind.DESCRIPTOR.name}: {error}") from None


def check_documents(count: int) -> None:
    """Raise InvalidRequest for more documents than one message may have."""
    if count > MOST_DOCUMENTS:
        raise InvalidRequest(f"the message has {count} documents, the limit is {MOST_DOCUMENTS}: send several messages")


def check_values(message: bytes, descriptor: Any) -> None:
    """Raise InvalidRequest for more than MOST_VALUES fields in a message, DecodeError for a malformed one.

    The count goes no further than the limit, so it takes less time than the parser, which holds every other thread.
    """
    parts, found = [(0, len(message), descriptor)], 0
    try:
        while parts:
            at, end, kind = parts.pop()
            inner = _inner(kind)
            while at < end:
                tag, at = _varint(message, at)
                wire = tag & 7
                if wire == _BYTES:
                    size, at = _varint(message, at)
                    if size > _TINY and (part := inner.get(tag >> 3)) is not None:
                        parts.append((at, min(at + size, end), part))
                    at += size
                elif wire == _VARINT:
                    _, at = _varint(message, at)
                elif wire in (_FIXED64, _FIXED32):
                    at += 8 if wire == _FIXED64 else 4
                found += 1
                if found > MOST_VALUES:
                    raise InvalidRequest(f"the message has more than {MOST_VALUES} values: send fewer in one message")
    except IndexError:
        raise DecodeError("it ends too early") from None


@cache
def _inner(descriptor: Any) -> dict[int, Any]:
    """Return the classes of the fields that are messages themselves, by their numbers."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it. Raises IndexError at the message's end."""
    byte = message[at]
    if byte < 0x80:
        return byte, at + 1
    number, shift = byte & 0x7F, 7
    for place in range(at + 1, at + 10):
        byte = message[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
        shift += 7
    raise IndexError("a number has at most ten bytes")
