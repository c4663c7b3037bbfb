"""Incremental parser of an HTTP/1.1 response: its status, and the pieces of its body with their times."""

from collections.abc import Callable

Piece = tuple[float, bytes]
"""Arrival time (perf_counter, seconds) and bytes of a part of a body."""
_MOST_HEAD = 65536
_BODILESS = (204, 304)


class BadAnswer(ValueError):
    """Error in a response that is not HTTP/1.1."""


class Response:
    """One response, parsed as its bytes arrive; the pieces of its body are appended to `pieces`."""

    def __init__(self, pieces: list[Piece]):
        self.pieces = pieces
        self.status: int | None = None
        """HTTP status; None until the head has arrived."""
        self.ended: float | None = None
        """Time at which it was complete; None before."""
        self.reusable = False
        """True if the connection may be used for another request."""
        self._rest = b""
        self._left = 0
        self._chunked = False
        self._step: Callable[[float], bool] = self._head

    def feed(self, at: float, data: bytes) -> None:
        """Parse bytes that arrived at the time `at`. Raises BadAnswer."""
        self._rest = self._rest + data if self._rest else data
        while self.ended is None and self._step(at):
            pass

    def close(self, at: float) -> None:
        """Handle the end of the connection, which ends a body without a length."""
        if self._step == self._to_the_end:
            self.ended = at

    # Each step parses the part that it is named after from `_rest`. It returns True if the next step may run.

    def _head(self, at: float) -> bool:
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _MOST_HEAD:
                raise BadAnswer("its head has no end")
            return False
        self._rest = rest
        first, *lines = head.split(b"\r\n")
        version, _, status = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
            raise BadAnswer(f"it begins with {first[:40]!r}")
        if status.startswith(b"1"):  # "100 Continue": the response follows
            return True
        self.status = int(status[:3])
        pairs = (line.partition(b":") for line in lines)
        self._body({name.strip().lower(): value.strip().lower() for name, _, value in pairs}, version, at)
        return True

    def _body(self, headers: dict[bytes, bytes], version: bytes, at: float) -> None:
        """Choose the step that parses the body, by the headers."""
        self.reusable = version != b"HTTP/1.0" and headers.get(b"connection") != b"close"
        length = headers.get(b"content-length")
        if headers.get(b"transfer-encoding", b"").endswith(b"chunked"):
            self._chunked, self._step = True, self._size
        elif length is not None or self.status in _BODILESS:
            self._left, self._step = _number(length or b"0", 10), self._counted
            self.ended = None if self._left else at
        else:
            self._step, self.reusable = self._to_the_end, False

    def _size(self, at: float) -> bool:
        line, end, rest = self._rest.partition(b"\r\n")
        if end:
            self._left = _number(line.partition(b";")[0].strip(), 16)
            self._rest, self._step = rest, self._counted if self._left else self._trailer
        elif len(line) > _MOST_HEAD:
            raise BadAnswer("a chunk has no size")
        return bool(end)

    def _counted(self, at: float) -> bool:
        data = self._rest[: self._left]
        if not data:
            return False
        self.pieces.append((at, data))
        self._rest = self._rest[len(data) :]
        self._left -= len(data)
        if not self._left and self._chunked:
            self._step = self._chunk_end
        elif not self._left:
            self.ended = at
        return True

    def _chunk_end(self, at: float) -> bool:
        if len(self._rest) < 2:
            return False
        if not self._rest.startswith(b"\r\n"):
            raise BadAnswer("a chunk is longer than its size")
        self._rest, self._step = self._rest[2:], self._size
        return True

    def _trailer(self, at: float) -> bool:
        line, end, rest = self._rest.partition(b"\r\n")
        if end:
            self._rest = rest
            self.ended = None if line else at
        return bool(end)

    def _to_the_end(self, at: float) -> bool:
        if self._rest:
            self.pieces.append((at, self._rest))
            self._rest = b""
        return False


def _number(text: bytes, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise BadAnswer(f"{text[:40]!r} is no length") from None
