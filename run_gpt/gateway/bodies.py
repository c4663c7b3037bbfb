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
from run_gpt.api.openai.base import OpenAIRequest
from run_gpt.api.schema import AnyRequest
from run_gpt.errors import InvalidRequest, RequestError, RequestTooLarge, UnsupportedEncoding

Result = TypeVar("Result")
COUNTED_BODIES = 8
"""Multiple of the limit up to which a body without a Content-Length is counted, for the error."""
SMALL = 16 * 1024
"""Most bytes of a body that is parsed on the event loop, in a few milliseconds; a larger one is parsed in a thread."""
_KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")
"""One thread: several would take the interpreter from the event loop more often."""


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of at most `limit` bytes, checked while it is read; its content type does not matter.

    Raises RequestTooLarge, which gives both numbers, and UnsupportedEncoding for a compressed body.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedEncoding(f"Content-Encoding {encoding[:100]}: send the body as it is, without compression")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise RequestTooLarge(f"the body has {declared[:20]} bytes, the limit is {limit} bytes")
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        if received <= limit:
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
        if isinstance(request, OpenAIRequest):
            with suppress(RequestError):  # raised again where it gets the names of this API
                request.natives()
    except RecursionError:
        raise InvalidRequest("the body is not a request: it is nested too deeply") from None
    return request
