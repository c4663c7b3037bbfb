"""Which addresses a host's name stands for: looked up again and again, beside the loop, and never less than is sure."""

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
"""From a host's name and a port to its "ip:port"s, none if it has no address. Raises OSError if nobody can say."""

# What a resolver says of a name, or of one kind of its addresses, that is not there. Others: it could not be asked.
_NONE_THERE = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY)


class Name:
    """What one "host:port" stands for, the host being a name."""

    def __init__(self, address: str, resolve: Resolve):
        self.address = address
        self.addresses: frozenset[str] = frozenset()
        """Those of the last answer that had any."""
        self.empty = True
        """Whether the last answer had none: then only what still answers is kept of `addresses`."""
        self._resolve = resolve
        self._trouble = ""

    async def follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Look it up for ever; after each time `changed` is awaited."""
        while True:
            await self.look_up()
            await changed()
            await asyncio.sleep(LOOKUP_SECONDS * random.uniform(0.8, 1.2))  # many gateways, one name server

    async def look_up(self) -> None:
        """Ask once. A failure changes nothing."""
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
    """The addresses that the names stand for, when `answers` says of each known one whether it answers probes."""
    return {address for name in names for address in name.addresses if not name.empty or answers.get(address, False)}


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name: its A records, else its AAAA records. Raises OSError if nobody can say."""
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
    """Host and port of "host:port" or "[ip]:port". Raises ValueError."""
    parts = urlsplit(f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError("it must be HOST:PORT")
    return parts.hostname, parts.port


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_name(host: str) -> bool:
    """Whether this is no literal IP address. Raises ValueError for what can be neither."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        host.encode("idna")
        return True
    return False
