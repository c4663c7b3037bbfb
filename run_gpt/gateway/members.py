"""The replicas that a pool has now: those at fixed addresses, and those that names stand for as they come and go."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from run_gpt.gateway.discovery import Name, Resolve, is_name, split_address, wanted
from run_gpt.gateway.replica import PROBE_SECONDS, Replica

log = logging.getLogger(__name__)

PROBES_PER_SECOND = 500.0
"""Of all replicas together: with more than 250 of them each is probed less often, or probes would take a whole core."""


class Members:
    """The replicas at `addresses` ("host:port"; a host that is a name stands for all that it resolves to).

    A replica whose address is no longer named is leaving: it finishes what it runs, then its connection is closed.
    """

    def __init__(self, addresses: Sequence[str], prepare: Callable[[Replica], Awaitable[None]], resolve: Resolve):
        self._prepare = prepare
        named = {address: is_name(split_address(address)[0]) for address in addresses}
        self.names = [Name(address, resolve) for address in named if named[address]]
        self._fixed = frozenset(address for address in named if not named[address])
        self.replicas = {address: Replica(address, prepare) for address in named if not named[address]}
        """By their addresses."""
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._lookups: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Watch from now on; a first look at each replica of a fixed address is over when this returns."""
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
        """Whether all watchers and lookups live: without them, what is known is not true for long."""
        tasks = [*self._lookups, *self._watchers.values()]
        return bool(tasks) and not any(task.done() for task in tasks)

    @property
    def unresolved(self) -> list[str]:
        """The names that have no address, or have had none yet."""
        return [name.address for name in self.names if name.empty]

    async def update(self) -> None:
        """Take in what the names stand for now, and close what has left and runs nothing."""
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
        # Of thousands that are found at once, each waits for its turn.
        first = random.uniform(0, len(self.replicas) / PROBES_PER_SECOND)
        self._watchers[replica.address] = asyncio.create_task(replica.watch(first, self._pause))

    def _pause(self) -> float:
        """Seconds to a replica's next probe: never the same, so that those of many do not come together."""
        return random.uniform(0.8, 1.2) * max(PROBE_SECONDS, len(self.replicas) / PROBES_PER_SECOND)
