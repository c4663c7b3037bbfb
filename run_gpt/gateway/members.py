"""The current replicas of a pool: those at fixed addresses, and those behind names, which come and go."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from run_gpt.gateway.discovery import Name, Resolve, is_name, split_address, wanted
from run_gpt.gateway.replica import CONNECTING_SECONDS, PROBE_SECONDS, Replica

log = logging.getLogger(__name__)

PROBES_PER_SECOND = 500.0
"""Limit for all replicas together: beyond 250 each is probed less often, or probes would take a whole core."""


class Members:
    """The replicas at `addresses` ("host:port"; a host that is a name stands for all addresses that it resolves to).

    A replica whose address is no longer listed is leaving: it finishes its requests, then its connection is closed.
    """

    def __init__(self, addresses: Sequence[str], prepare: Callable[[Replica], Awaitable[None]], resolve: Resolve):
        self._prepare = prepare
        named = {address: is_name(split_address(address)[0]) for address in addresses}
        self.names = [Name(address, resolve) for address in named if named[address]]
        self._fixed = frozenset(address for address in named if not named[address])
        self.replicas = {address: Replica(address, prepare) for address in named if not named[address]}
        """Replicas by their addresses."""
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._lookups: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start watching. Each replica at a fixed address has been probed once when this returns."""
        await asyncio.gather(*(replica.probe() for replica in self.replicas.values()))
        for replica in self.replicas.values():
            self._watch(replica)
        self._lookups = [asyncio.create_task(name.follow(self.update)) for name in self.names]

    async def close(self) -> None:
        """End the watchers and the connections."""
        tasks = [*self._lookups, *self._watchers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.replicas.values()))

    @property
    def watched(self) -> bool:
        """True when all watchers and look-ups run: without them the known states become stale."""
        tasks = [*self._lookups, *self._watchers.values()]
        return bool(tasks) and not any(task.done() for task in tasks)

    @property
    def unresolved(self) -> list[str]:
        """Names that have no address now, or have had none yet."""
        return [name.address for name in self.names if name.empty]

    async def update(self) -> None:
        """Apply the current addresses of the names, and close replicas that are leaving and have no requests."""
        answers = {address: replica.answers for address, replica in self.replicas.items()}
        addresses = self._fixed | wanted(self.names, answers)
        for address in sorted(addresses - self.replicas.keys()):
            log.info("a new replica: %s", address)
            self.replicas[address] = Replica(address, self._prepare)
            self._watch(self.replicas[address])
        for address, replica in self.replicas.items():
            replica.is_named(address in addresses)
        left = [replica for replica in self.replicas.values() if replica.leaving and not replica.in_flight]
        for replica in left:
            del self.replicas[replica.address]
        await asyncio.gather(*(self._end(replica, self._watchers.pop(replica.address)) for replica in left))

    async def _end(self, replica: Replica, watcher: asyncio.Task[None]) -> None:
        log.info("a replica has left: %s", replica.address)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        await replica.close()

    def _watch(self, replica: Replica) -> None:
        # When thousands are found at once, their first probes are spread over time.
        first = random.uniform(0, len(self.replicas) / PROBES_PER_SECOND)
        self._watchers[replica.address] = asyncio.create_task(replica.watch(first, partial(self._pause, replica)))

    def _pause(self, replica: Replica) -> float:
        """Return the seconds to a replica's next probe, with jitter, so that the replicas' probes do not coincide."""
        seconds = CONNECTING_SECONDS if replica.state == "connecting" else PROBE_SECONDS
        return random.uniform(0.8, 1.2) * max(seconds, len(self.replicas) / PROBES_PER_SECOND)
