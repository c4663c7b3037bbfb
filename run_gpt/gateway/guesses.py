"""Delays for wrong keys, by the address that they come from.

Each wrong key makes the next new key of its address wait longer, right or wrong: if right ones were answered at once, a
guesser would not wait for the others. A key that was right before, from the same address, never waits.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote

log = logging.getLogger(__name__)

FREE = 5
"""Number of wrong keys of an address that cost no delay: people mistype."""
FIRST_SECONDS, MOST_SECONDS = 0.1, 1.0
"""First delay, which doubles with each wrong key, and the longest one."""
QUIET_SECONDS = 60.0
"""Time without a wrong key after which an address begins anew."""
CAPACITY = 4096
"""Number of addresses, and of right keys with their addresses, that are kept; the oldest are dropped first."""
UNKNOWN = "unknown"
"""Address of a client that has none, such as one on a Unix socket."""


class Guesses:
    """Record of wrong keys by address, and of right ones."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Number of wrong keys of each source, and the time of the last one."""
        self._proven: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    async def wait(self, address: str, digest: bytes, *, right: bool) -> None:
        """Wait as long as the answer to a request with this key must from this address, and note the key."""
        source = _source(address)
        if right and (source, digest) in self._proven:
            self._proven.move_to_end((source, digest))
            return
        count = self._count(source)
        if not right:  # before the wait, or keys that come together would not count
            self._note(source, count + 1)
        if count >= FREE:
            await asyncio.sleep(min(MOST_SECONDS, FIRST_SECONDS * 2 ** min(count - FREE, 10)))
        if right:  # after it, or a second request with the same key would tell at once
            self._proven[source, digest] = None
            _trim(self._proven)

    def _count(self, source: str) -> int:
        count, last = self._wrong.get(source, (0, 0.0))
        return count if time.monotonic() - last < QUIET_SECONDS else 0

    def _note(self, source: str, count: int) -> None:
        self._wrong[source] = count, time.monotonic()
        self._wrong.move_to_end(source)
        _trim(self._wrong)
        if count == FREE:
            log.warning("%s has sent %d wrong keys: its next new keys wait up to %g s", source, count, MOST_SECONDS)


def _trim(kept: "OrderedDict[str, tuple[int, float]] | OrderedDict[tuple[str, bytes], None]") -> None:
    if len(kept) > CAPACITY:
        kept.popitem(last=False)


def _source(address: str) -> str:
    """Return the address, or the network of an IPv6 address: a client has 2^64 of these."""
    return str(ip_network(f"{address}/64", strict=False)) if ":" in address else address


def client_address(host: str | None) -> str:
    """Return an IP address in its usual form; UNKNOWN for every other text, since a proxy may send any."""
    try:
        address: IPv4Address | IPv6Address = ip_address((host or "").partition("%")[0])
    except ValueError:
        return UNKNOWN
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def peer_address(peer: str) -> str:
    """Return the IP address of a gRPC peer, such as `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    kind, _, rest = unquote(peer).partition(":")
    return client_address(rest.rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else UNKNOWN
