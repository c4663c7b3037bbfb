"""Compressed bodies of HTTP requests: which codings are taken, and their decoding within a limit."""

import zlib
from collections.abc import Iterable

from run_gpt.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding

ACCEPTED = "gzip, deflate"
"""Value of the header `Accept-Encoding` of a refusal."""
_FORMATS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
MOST_MEMBERS = 64
"""Most parts of a gzip body; each has a head of its own."""


def coding_of(content_encodings: Iterable[str]) -> str | None:
    """Return the coding in the values of the header `Content-Encoding`; None: the body is as it is.

    Raises UnsupportedEncoding for a coding that is not taken, and for several.
    """
    names = [name.strip().lower() for value in content_encodings for name in value.split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _FORMATS:
        sent = ", ".join(codings)[:100]
        raise UnsupportedEncoding(f"Content-Encoding {sent}: send the body in one of {ACCEPTED}, or as it is")
    return codings[0]


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """Return the decoded body. Raises InvalidRequest if it is malformed, RequestTooLarge beyond `limit` bytes."""
    decoded, rest = bytearray(), body
    for _ in range(MOST_MEMBERS):
        stream = zlib.decompressobj(_FORMATS[coding])
        try:
            decoded += stream.decompress(rest, limit + 1 - len(decoded))
        except zlib.error:
            raise InvalidRequest(f"the body is not {coding}, as its Content-Encoding says") from None
        if len(decoded) > limit:
            raise RequestTooLarge(
                f"the body has more than {limit} bytes when it is decoded, the limit is {limit} bytes"
            )
        if not stream.eof:
            raise InvalidRequest(f"the body is not whole: its {coding} data ends too early")
        if not (rest := stream.unused_data):
            return bytes(decoded)
        if coding == "deflate":
            raise InvalidRequest("the body is not deflate alone: bytes follow its end")
    raise InvalidRequest(f"the body has more than {MOST_MEMBERS} parts of gzip")
