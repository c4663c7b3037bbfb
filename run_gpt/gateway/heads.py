"""Heads of HTTP requests: those that could be taken in more than one way, or are too large, are refused."""

import httptools

from run_gpt.errors import InvalidRequest

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
TOO_LARGE = f"the head of the request has more than {MAX_HEADERS} headers or {MAX_HEAD_BYTES // 2} bytes"


class Refused(Exception):
    """Raised in a callback of the parser: the request is refused and the connection closed."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.error = status, InvalidRequest(message)


def check_head(version: str, url: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Check a head, and give the request the host of an absolute `url`. Names of headers are in lower case.

    Return the path and query of `url`. Raises Refused for a head that this server takes in no or in more than one way.
    """
    if version not in ("1.0", "1.1"):
        raise Refused(505, f"HTTP/{version} is not spoken here: use HTTP/1.1")
    size = len(url) + sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES // 2:
        raise Refused(431, TOO_LARGE)
    target = _path_in(url, version, headers)
    encodings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if encodings and (lengths or version == "1.0" or encodings != [b"chunked"]):
        raise Refused(400, "Transfer-Encoding may only be chunked, without Content-Length, in HTTP/1.1")
    if len(lengths) > 1:
        raise Refused(400, "the request has several headers Content-Length: send one")
    return target


def _path_in(url: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the path and query of a target. The host in `http://HOST/PATH` is the request's: RFC 9112, 3.2.2.

    A request that lacks `Host`, or has several, stays so, and is refused for that later. Raises Refused for a malformed
    target.
    """
    try:
        target = httptools.parse_url(url)
        path = target.path or (b"/" if target.host else b"")
        path.decode("ascii")
    except (httptools.HttpParserError, UnicodeDecodeError):
        path = b""
    if not path:
        raise Refused(400, f"the target of the request is not a path: {url[:100]!r}")
    if target.host is None:
        return url
    if target.schema.lower() not in (b"http", b"https") or target.userinfo is not None:
        raise Refused(400, f"the target of the request must be a path, or http://HOST/PATH: {url[:100]!r}")
    others = [header for header in headers if header[0] != b"host"]
    hosts = len(headers) - len(others)
    if hosts == 1 or (hosts == 0 and version == "1.0"):
        port = b"" if target.port is None else b":%d" % target.port
        host = b"[%b]" % target.host if b":" in target.host else target.host
        headers[:] = [*others, (b"host", host + port)]
    return path if target.query is None else path + b"?" + target.query
