"""The first code that an HTTP request meets: it gives the request the path that all checks and routes read."""

from starlette.types import ASGIApp, Receive, Scope, Send

PAGES = ("/docs", "/playground")
"""Pages whose links are relative to their path: with a slash at its end the links would lead elsewhere."""


def front(app: ASGIApp) -> ASGIApp:
    """Wrap the app, behind all its checks. Routes have no slash at their end; a request may have one."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": path_of(scope["path"])}
        await app(scope, receive, send)

    return called


def path_of(path: str) -> str:
    """Return the path without slashes at its end, except for PAGES."""
    bare = path.rstrip("/") or "/"
    return path if bare in PAGES else bare
