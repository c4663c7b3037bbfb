"""The open HTTP connections of a server: a bound on their number, and the choice of one to close for another."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol


class Waiting(Protocol):
    """A connection, as far as OpenConnections knows it."""

    address: str
    transport: asyncio.Transport

    def check(self, now: float) -> None:
        """End the connection if its client is late; `now` is the event loop's time."""


class OpenConnections:
    """The open connections of a server: at most `limit`, and half of that from one address that is not `trusted`.

    One connection more closes the one that has waited longest for the rest of its request, or for one at all. It is
    refused if all have requests in progress.
    """

    def __init__(self, limit: int, trusted: Callable[[str], bool] = lambda address: False):
        self.limit = limit
        self._trusted = trusted
        self._all: set[Waiting] = set()
        self._waiting: dict[Waiting, None] = {}
        """Connections without a whole request, the one that has waited longest first."""
        self._of_address: Counter[str] = Counter()

    def add(self, connection: Waiting) -> bool:
        """Add a connection. Return False if there is no room for it."""
        address = connection.address
        room = True
        if self._of_address[address] >= max(1, self.limit // 2) and not self._trusted(address):
            room = self._make_room(address)
        elif len(self._all) >= self.limit:
            room = self._make_room(None)
        self._all.add(connection)
        self._of_address[address] += 1
        return room

    def remove(self, connection: Waiting) -> None:
        """Remove a closed connection."""
        self._all.discard(connection)
        self._waiting.pop(connection, None)
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]

    def set_waiting(self, connection: Waiting, *, waiting: bool) -> None:
        """Note that a connection waits from now on, or that it does not any more."""
        self._waiting.pop(connection, None)
        if waiting:
            self._waiting[connection] = None

    def check(self, now: float) -> None:
        """End the connections that are late. Called once a second, with the event loop's time."""
        for connection in list(self._all):
            connection.check(now)

    def _make_room(self, address: str | None) -> bool:
        found = next((one for one in self._waiting if address in (None, one.address)), None)
        if found is None:
            return False
        self._waiting.pop(found)
        found.transport.abort()
        return True
