"""Decoder of server-sent events, from the bytes of a stream to the data of its events, by the WHATWG standard.

Lines end with CR, LF or CR LF only: a JSON text may contain other line separators, such as U+2028.
"""

import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventDecoder:
    """Decoder that takes the stream piece by piece."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._first = True
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the data of each event that this piece completes."""
        if self._after_cr and piece.startswith(b"\n"):  # the second half of a CR LF
            piece = piece[1:]
        if piece:
            self._after_cr = piece.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        for line in lines:
            yield from self._take(line)

    def _take(self, line: bytes) -> Iterator[bytes]:
        if self._first:
            line, self._first = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line and self._data:
            data, self._data = b"\n".join(self._data), []
            yield data
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
