"""Bodies of HTTP requests: read within a limit, and made a checked request without holding others up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request

from run_gpt.api.endpoints import Endpoint
from run_gpt.api.fields import Rules
from run_gpt.api.json_text import parse_json
from run_gpt.api.request import AnyRequest
from run_gpt.api.translated import TranslatedRequest
from run_gpt.errors import InvalidRequest, RequestError, RequestTooLarge
from run_gpt.gateway.encodings import coding_of, decode
from run_gpt.gateway.held import Lease

Result = TypeVar("Result")
COUNTED_BODIES = 8
"""Multiple of the limit up to which a body without a Content-Length is counted, for the error."""
SMALL = 16 * 1024
"""Most bytes of a body that is parsed on the event loop, in a few milliseconds; a larger one is parsed in a thread."""
SMALL_CODED = 1024
"""Most bytes of a compressed body that is decoded on the event loop: it has at most a thousand times as many."""
_KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")
"""One thread: several would take the interpreter from the event loop more often."""


async def read_body(request: Request, limit: int, lease: Lease) -> bytes:
    """Return the decoded body of at most `limit` bytes, checked while it is read; its content type does not matter.

    Raises RequestTooLarge, which gives both numbers, UnsupportedEncoding for a coding that is not taken, InvalidRequest
    for one that is malformed, and QueueFull if other bodies leave no room for it.
    """
    coding = coding_of(request.headers.getlist("content-encoding"))
    body = await _received(request, limit, lease)
    if coding is None:
        return body
    if len(body) <= SMALL_CODED:
        decoded = decode(body, coding, limit)
    else:
        decoded = await in_thread(lambda: decode(body, coding, limit))
    lease.hold(len(decoded))
    return decoded


async def _received(request: Request, limit: int, lease: Lease) -> bytes:
    """Return the body as it comes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise RequestTooLarge(f"the body has {declared[:20]} bytes, the limit is {limit} bytes")
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        if received <= limit:
            lease.hold(received)
            body += chunk
        elif received > COUNTED_BODIES * limit:
            break
    if received > limit:
        raise RequestTooLarge(f"the body has {received} or more bytes, the limit is {limit} bytes")
    return bytes(body)


async def request_of(
    endpoint: Endpoint, body: bytes | None, path_params: dict[str, Any], rules: Rules = "usual"
) -> AnyRequest:
    """Return the checked request of a body, or of a path alone. Raises InvalidRequest."""

    def parse() -> AnyRequest:
        fields = {} if body is None else parse_body(body)
        return _parse(endpoint, {**fields, **path_params}, rules)

    return parse() if body is None or len(body) <= SMALL else await in_thread(parse)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Return the result of `work`, which may take long."""
    return await asyncio.get_running_loop().run_in_executor(_thread, work)


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises InvalidRequest, which says what is wrong and where."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: it is not UTF-8 at byte {error.start}") from None
    data = parse_json(text, "the body")
    if not isinstance(data, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {_KINDS.get(type(data), 'a number')}")
    return data


def _parse(endpoint: Endpoint, fields: dict[str, Any], rules: Rules) -> AnyRequest:
    try:
        request = endpoint.request.parse(fields, stream=endpoint.answer is None, rules=rules)
        if isinstance(request, TranslatedRequest):
            with suppress(RequestError):  # raised again where it gets the names of this API
                request.natives()
    except RecursionError:
        raise InvalidRequest("the body is not a request: it is nested too deeply") from None
    return request
