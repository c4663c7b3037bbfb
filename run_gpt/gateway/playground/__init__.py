"""The playground over HTTP: a fixed table of files, each with its type, and headers that forbid outside resources."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

PLAYGROUND = "/playground"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
SCRIPTS = ("api", "app", "conversation", "copy", "models", "render", "settings", "storage", "stream", "theme", "views")
LIBRARIES = ("markdown-it.umd.min.js", "purify.min.js", "highlight.min.js")
ASSETS = (
    *("style.css", "answer.css", "icon.svg"),
    *(f"{name}.js" for name in SCRIPTS),
    *(f"vendor/{name}" for name in LIBRARIES),
)
"""Files that the page loads, below PLAYGROUND."""

HEADERS = {
    "Cache-Control": "no-cache",  # cached, but checked each time: no page mixes two versions after an upgrade
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Page:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


def read_page(name: str) -> Page:
    """Read the playground's file `name` from the package."""
    content = files(__name__).joinpath(name).read_bytes()
    return Page(content, _TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def playground_files() -> dict[str, Any]:
    """Return the handlers of `GET` by their paths: PLAYGROUND, and below it each of ASSETS."""
    pages = {PLAYGROUND: "index.html", **{f"{PLAYGROUND}/{name}": name for name in ASSETS}}
    return {path: _sender(read_page(name)) for path, name in pages.items()}


def _sender(page: Page) -> Any:
    async def send(request: Request) -> Response:
        headers = {**HEADERS, "ETag": page.etag}
        if page.etag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(page.content, headers=headers, media_type=page.media_type)

    return send
