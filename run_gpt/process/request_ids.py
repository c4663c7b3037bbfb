"""What a request is called: by whom it is named, in which form, and what this task's request is called."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from run_gpt.errors import InvalidRequest, RequestError

HEADER = "X-Request-Id"
"""The header by which a client names a request, and by which each answer says what its request is called."""
METADATA = HEADER.lower()
"""The same in a gRPC call's metadata, which knows no capitals."""

current: ContextVar[str | None] = ContextVar("current", default=None)
"""What the request is called that this task works for: it stands in the lines of the log, and goes to the replica."""


def check(sent: str, param: str = HEADER) -> str:
    """The id, as it was sent. Raises InvalidRequest, with `param`, for what may not stand in a log."""
    if not re.fullmatch(r"[!-~]{1,128}", sent):
        raise InvalidRequest(f"{param}: up to 128 printable ASCII characters without spaces", param=param)
    return sent


@contextmanager
def in_errors(name: Callable[[], str | None]) -> Iterator[None]:
    """Errors that leave the block have the request's name, as it is known then, as their `request_id`."""
    try:
        yield
    except RequestError as error:
        error.request_id = name()
        raise
