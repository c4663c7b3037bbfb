"""The first code that an HTTP request meets: it sets the path and the client that all checks and routes read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from run_gpt.gateway.proxies import FORWARDED, Proxies

PAGES = ("/docs", "/playground")
"""Pages whose links are relative to their path: with a slash at its end the links would lead elsewhere."""


def front(app: ASGIApp, proxies: Proxies) -> ASGIApp:
    """Wrap the app, with all its checks. Routes have no slash at their end; a request may have one.

    The client is the one that `proxies` name.
    """

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope["client"][0] if scope.get("client") else None
            client = proxies.client(peer, Headers(scope=scope).getlist(FORWARDED))
            scope = {**scope, "path": path_of(scope["path"]), "client": (client, 0)}
        await app(scope, receive, send)

    return called


def path_of(path: str) -> str:
    """Return the path without slashes at its end, except for PAGES."""
    bare = path.rstrip("/") or "/"
    return path if bare in PAGES else bare
