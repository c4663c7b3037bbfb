"""The check of the header `Host`: the names by which requests may call the server."""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from run_gpt.errors import Forbidden, InvalidRequest, SetupError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(:[0-9]{1,5})?", re.ASCII)
_NAME = re.compile(r"\*|\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)


def check_hosts(names: Sequence[str]) -> None:
    """Raise SetupError for a value that is no name of a host, and that so would never match."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise SetupError(f"--allowed-host {name}: write a name in lower case, without scheme and port, or *")


class Hosts:
    """Names by which requests may call the server.

    Without this a page on the web can call a server on its reader's machine: its owner rebinds the page's name to
    127.0.0.1, and the browser takes both for one origin. A server with a key needs no check, since the page has no
    key. Nor has a request on another interface one, since a server cannot know its names there. With `allowed` every
    request must have one of these names, or one of the machine's own.
    """

    def __init__(self, allowed: Sequence[str], *, keyed: bool):
        self._allowed = frozenset(allowed)
        self._keyed = keyed

    def check(self, scope: Scope) -> None:
        """Raise InvalidRequest for a malformed header, Forbidden for a name that is not allowed."""
        sent = Headers(scope=scope).getlist("host")
        if len(sent) > 1 or (not sent and scope.get("http_version") != "1.0"):
            raise InvalidRequest(f"the request has {len(sent)} headers Host: send one")
        if not sent:
            return  # no browser sends this
        if (name := name_of(sent[0])) is None:
            raise InvalidRequest(f"the header Host must be NAME or NAME:PORT, got {sent[0][:100]!r}")
        if self._applies(scope) and not {"*", name} & self._allowed and not is_own(name):
            raise Forbidden(f"this server is not called {name[:100]}: allow it with --allowed-host {name[:100]}")

    def _applies(self, scope: Scope) -> bool:
        host, _ = scope.get("server") or ("", None)
        return bool(self._allowed) or (not self._keyed and is_loopback(host))


def name_of(header: str) -> str | None:
    """Return the name in a header `Host`, in lower case and without its port; None for a malformed one."""
    match = _HOST.fullmatch(header)
    return None if match is None else match[1].lower().removesuffix(".")


def is_own(name: str) -> bool:
    """Return True for an address, and for a name that browsers resolve to this machine without asking anybody."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return True for an address of this machine that no other machine reaches."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
