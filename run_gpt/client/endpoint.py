"""`Endpoint`: the address of a server, checked."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, urlsplit

from run_gpt.errors import InvalidRequest

_PORTS = {"grpc": 51000, "grpcs": 443, "http": 52000, "https": 443}


@dataclass(frozen=True)
class Endpoint:
    """Address and protocol of a server."""

    scheme: str
    host: str
    port: int
    path: str = ""
    """Prefix of the routes, for an HTTP server behind a proxy; without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return the endpoint that `url` names. Raises InvalidRequest, which lists the valid forms."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except (ValueError, AttributeError, TypeError):
            raise _bad(url) from None
        if parts.scheme not in _PORTS or not host or _has_more(parts):
            raise _bad(url)
        path = parts.path.rstrip("/")
        if path and parts.scheme.startswith("grpc"):
            raise _bad(url)
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], path)

    @property
    def is_grpc(self) -> bool:
        """True for gRPC, False for HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def is_secure(self) -> bool:
        """True when the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def address(self) -> str:
        """HOST:PORT to connect to; a server that listens on all interfaces is reached on the loopback one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def _has_more(parts: SplitResult) -> bool:
    return bool(parts.query or parts.fragment or "@" in parts.netloc or any(c.isspace() for c in parts.netloc))


def _bad(url: object) -> InvalidRequest:
    return InvalidRequest(
        f"endpoint = {url!r}: an endpoint is grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT or https://HOST:PORT",
        param="endpoint",
    )
