"""Request ids: the header that carries them, their valid form, and the id of the current task's request."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from run_gpt.errors import InvalidRequest, RequestError

HEADER = "X-Request-Id"
"""Header with which a client may give its request an id, and with which each answer reports its request's id."""
METADATA = HEADER.lower()
"""Key of the id in a gRPC call's metadata, which must be in lower case."""

current: ContextVar[str | None] = ContextVar("current", default=None)
"""Id of the request for which this task works. It is written in log lines and sent to the replica."""


def check(sent: str, param: str = HEADER) -> str:
    """Return the id as it was sent. Raises InvalidRequest, with `param`, for an id that may not appear in a log."""
    if not re.fullmatch(r"[!-~]{1,128}", sent):
        raise InvalidRequest(f"{param}: up to 128 printable ASCII characters without spaces", param=param)
    return sent


@contextmanager
def in_errors(name: Callable[[], str | None]) -> Iterator[None]:
    """Set `request_id` of errors that leave the block to the request's id, which `name` returns at that time."""
    try:
        yield
    except RequestError as error:
        error.request_id = name()
        raise
