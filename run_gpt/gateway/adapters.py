"""Changes of adapters while a server runs: applied to every replica, and again to each replica that restarts."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.answers import Answer
from run_gpt.api.request import AnyRequest
from run_gpt.errors import InvalidRequest, ModelNotFound, RequestError, Unavailable
from run_gpt.gateway.replica import Replica

log = logging.getLogger(__name__)

Ask = Callable[[Replica, AnyRequest], Awaitable[Answer]]
Change = LoadAdapterRequest | UnloadAdapterRequest


class AdapterChanges:
    """Adapters that were loaded and unloaded since the start, by name. `ask` sends one request to one replica."""

    def __init__(self, ask: Ask):
        self._ask = ask
        self._paths: dict[str, str | None] = {}
        """Path of each loaded adapter, by name; None: unloaded."""
        self._unloaded: set[str] = set()
        """Names that were unloaded at some time: a restarted replica may hold another adapter under such a name."""
        self._one_at_a_time = asyncio.Lock()

    async def make(self, change: Change, ready: Callable[[], Sequence[Replica]]) -> Answer:
        """Make the change in every replica that is ready at that moment. Raises a RequestError.

        An adapter is loaded in all of them or in none. A client that disconnects does not stop a change half-way.
        """
        return await asyncio.shield(asyncio.ensure_future(self._make(change, ready)))

    def applied(self, names: Sequence[str]) -> list[str]:
        """Return these names, of adapters that a replica has reported, after all changes."""
        kept = [name for name in names if self._paths.get(name, "") is not None]
        return kept + [name for name, path in self._paths.items() if path is not None and name not in kept]

    async def bring_up_to_date(self, replica: Replica) -> None:
        """Make the changes in a replica that was restarted. Raises a RequestError."""
        async with self._one_at_a_time:
            if not self._paths:
                return
            there = cast("AdapterList", await self._ask(replica, ListAdaptersRequest.parse({}))).adapters
            for name, path in self._paths.items():
                stale = name in there and name in self._unloaded
                if stale:
                    await self._ask(replica, UnloadAdapterRequest.parse({"name": name}))
                if path is not None and (stale or name not in there):
                    await self._ask(replica, LoadAdapterRequest.parse({"name": name, "path": path}))

    async def _make(self, change: Change, ready: Callable[[], Sequence[Replica]]) -> Answer:
        async with self._one_at_a_time:
            replicas = ready()  # now, not before: a replica that came back during the wait needs the change, too
            if not replicas:
                raise Unavailable("no replica is ready: try again in a moment")
            if isinstance(change, LoadAdapterRequest):
                return await self._load(change, replicas)
            return await self._unload(change, replicas)

    async def _load(self, change: LoadAdapterRequest, replicas: Sequence[Replica]) -> Answer:
        """Load in one replica after the other, so that the first one refuses an adapter that does not fit."""
        for count, replica in enumerate(replicas):
            try:
                answer = await self._ask(replica, change)
            except RequestError as error:
                # A replica that refused has nothing to undo; one that was lost or late may have loaded it.
                await self._undo(replicas[: count + (not isinstance(error, InvalidRequest))], change.name)
                raise
        self._paths[change.name] = change.path
        return answer

    async def _unload(self, change: UnloadAdapterRequest, replicas: Sequence[Replica]) -> Answer:
        """Unload in all replicas. One without the adapter is no error if another had it: it was restarted meanwhile.

        A replica that fails is late, or gone: it refuses the adapter already, or gets this change when it comes back.
        """
        answers = await asyncio.gather(*(self._ask(replica, change) for replica in replicas), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers) and all(isinstance(error, ModelNotFound) for error in errors):
            raise errors[0]
        self._paths[change.name] = None
        self._unloaded.add(change.name)
        for error in errors:
            if not isinstance(error, ModelNotFound):
                raise error
        return next(answer for answer in answers if isinstance(answer, Answer))

    async def _undo(self, replicas: Sequence[Replica], name: str) -> None:
        for replica in replicas:
            try:
                await self._ask(replica, UnloadAdapterRequest.parse({"name": name}))
            except ModelNotFound:
                continue  # the replica had not loaded it
            except RequestError as error:
                log.warning("adapter %s may stay in the replica at %s: %s", name, replica.address, error.message)
