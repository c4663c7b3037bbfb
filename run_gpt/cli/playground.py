"""`rungpt playground`: open the chat page of a running server."""

import sys
import webbrowser
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import typer

from run_gpt.config import LOOPBACK, ServeConfig
from run_gpt.errors import SetupError

SECONDS = 5.0


def playground(
    url: Annotated[str, typer.Option(help="URL of the server (HTTP).")] = f"http://{LOOPBACK}:{ServeConfig.http_port}",
    print_only: Annotated[bool, typer.Option("--print", help="Print the page's URL; open no browser.")] = False,
) -> None:
    """Open the playground of a running server in the browser; print its URL."""
    page = page_of(url)
    check_alive(url)
    print(page)
    if not print_only and not webbrowser.open(page):
        print("No browser could be opened here: open the URL yourself.", file=sys.stderr)


def page_of(url: str) -> str:
    """Return the URL of the playground on the server at `url`. Raises SetupError if `url` is not an HTTP URL."""
    return _join(url, "playground")


def check_alive(url: str) -> None:
    """Raise SetupError if no RunGPT server answers at `url`."""
    import httpx

    from run_gpt.client.trust import given_ca, http_trust

    try:
        trust = http_trust(urlsplit(url).scheme == "https", given_ca())
        response = httpx.get(_join(url, "health"), timeout=SECONDS, verify=trust)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SetupError(f"no server answers at {_shown(url)} ({_why(error)}): start one with `rungpt serve`") from None
    if response.status_code != 200:
        raise SetupError(f"{_shown(url)} answers GET /health with {response.status_code}: it is no server of RunGPT's")


def _join(url: str, name: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SetupError(f"--url {_shown(url)}: write http://HOST:PORT")
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", "", ""))


def _shown(url: str) -> str:
    """Return the URL without user name and password, which may contain a key."""
    return url.rpartition("@")[2] if "@" in url else url


def _why(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
