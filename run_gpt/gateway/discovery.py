"""Addresses behind a host's name: looked up repeatedly, off the event loop, and dropped only when that is certain."""

import asyncio
import ipaddress
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

LOOKUP_SECONDS = 1.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Look-up of a host's name and a port: its "ip:port"s, none without an address. Raises OSError if it fails."""

# Errors of a resolver for a name, or a kind of address, that does not exist. Other errors: the look-up failed.
_NONE_THERE = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY)


class Name:
    """Addresses of one "host:port" whose host is a name."""

    def __init__(self, address: str, resolve: Resolve):
        self.address = address
        self.addresses: frozenset[str] = frozenset()
        """Addresses in the last answer that had any."""
        self.empty = True
        """True when the last answer had none: then only those of `addresses` that still answer are kept."""
        self._resolve = resolve
        self._trouble = ""

    async def follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Look the name up for ever; await `changed` after each look-up."""
        while True:
            await self.look_up()
            await changed()
            await asyncio.sleep(LOOKUP_SECONDS * random.uniform(0.8, 1.2))  # many gateways, one name server

    async def look_up(self) -> None:
        """Look the name up once. A failure changes nothing."""
        try:
            found = await self._resolve(*split_address(self.address))
        except OSError as error:
            self._note(f"cannot be looked up: {error.strerror or error}")
            return
        self.empty = not found
        if found:
            self.addresses = frozenset(found)
        self._note("" if found else "has no address")

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("the executors' name %s %s", self.address, trouble or "has addresses again")
        self._trouble = trouble


def wanted(names: Iterable[Name], answers: Mapping[str, bool]) -> set[str]:
    """Return the addresses of the names. `answers`: True for each known address that answers probes."""
    return {address for name in names for address in name.addresses if not name.empty or answers.get(address, False)}


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name: its A records, else its AAAA records. Raises OSError if the look-up fails."""
    loop = asyncio.get_running_loop()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno not in _NONE_THERE:
                raise
        else:
            return sorted({join_address(str(address[0]), port) for *_, address in found})
    return []


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[ip]:port". Raises ValueError."""
    parts = urlsplit(f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError("it must be HOST:PORT")
    return parts.hostname, parts.port


def join_address(host: str, port: int) -> str:
    """Return the address that `split_address` would split."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_name(host: str) -> bool:
    """Return True unless this is a literal IP address. Raises ValueError if it can be neither a name nor an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host.encode("idna")
        return True
    return False
