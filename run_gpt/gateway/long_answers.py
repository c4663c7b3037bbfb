"""Answers that take long to write: their JSON is made beside the event loop or passed on unread, and sent in slices."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from run_gpt.api.answers import Body
from run_gpt.api.endpoints import endpoint_of
from run_gpt.api.long_parts import Filled, Unread
from run_gpt.api.request import AnyRequest
from run_gpt.errors import InternalError
from run_gpt.gateway.limits import note_tokens

LONG_ANSWER = 64 * 1024
"""Most bytes of an answer that are read and written on the event loop, in a millisecond."""
SLICE_BYTES = 512 * 1024
"""Most bytes that are written to a connection at once."""
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answers")
"""One thread: several would take the interpreter from the event loop more often."""

_Result = TypeVar("_Result")


class _Usage(Struct):
    total_tokens: int = 0


class _Counted(Struct):
    """Fields of a native answer that the gateway counts. The rest is checked to be JSON, and no more."""

    id: str
    usage: _Usage | None = None


async def filled(body: Body, unread: Unread) -> Body | Filled:
    """Return the answer with its parts filled in, as JSON if it has any."""
    if not (size := unread.size):
        return body

    def fill() -> bytes:
        written = body.to_json()
        return unread.fill(written if isinstance(written, bytes) else written.encode())

    return Filled(type(body), fill() if size <= LONG_ANSWER else await in_thread(fill))


async def passed_on(request: AnyRequest, json: bytes) -> Filled:
    """Return the long answer to a native request as it came. Raises InternalError if it is none."""
    try:
        counted = await in_thread(lambda: _counted(json))
    except msgspec.MsgspecError as problem:
        raise InternalError(f"the model server gave a malformed answer: {problem}") from problem
    note_tokens(counted.usage.total_tokens if counted.usage else 0)
    return Filled(endpoint_of(request, stream=False).body(stream=False), json)


_counted = msgspec.json.Decoder(_Counted).decode


class LongResponse(Response):
    """Response with a large body, which is sent slice by slice: a connection copies what it gets several times."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send_slices(send, self.body)
        await send({"type": "http.response.body", "body": b""})


async def send_slices(send: Send, content: bytes | memoryview) -> None:
    """Send a part of a body; others go on between two slices."""
    for start in range(0, len(content), SLICE_BYTES):  # most often one
        if start:
            await asyncio.sleep(0)
        piece = bytes(content[start : start + SLICE_BYTES])
        await send({"type": "http.response.body", "body": piece, "more_body": True})


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """Return `work()`, which writes or reads a long answer."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work)
