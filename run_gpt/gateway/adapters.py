"""Changes of adapters while a server runs: made in every replica, and made again in each that comes back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.schema import Answer, AnyRequest
from run_gpt.errors import ModelNotFound, RequestError
from run_gpt.gateway.replica import Replica

log = logging.getLogger(__name__)

Ask = Callable[[Replica, AnyRequest], Awaitable[Answer]]
Change = LoadAdapterRequest | UnloadAdapterRequest


class AdapterChanges:
    """What was loaded and unloaded since the start, by name. `ask`: one request to one replica."""

    def __init__(self, ask: Ask):
        self._ask = ask
        self._paths: dict[str, str | None] = {}
        """Of what was loaded the path; None: unloaded."""
        self._one_at_a_time = asyncio.Lock()

    async def make(self, change: Change, replicas: Sequence[Replica]) -> Answer:
        """Make the change in these replicas, or in none. Raises the RequestError of the first that refuses."""
        async with self._one_at_a_time:
            if isinstance(change, LoadAdapterRequest):
                answer = await self._load(change, replicas)
                self._paths[change.name] = change.path
            else:
                answer = await self._unload(change, replicas)
                self._paths[change.name] = None
            return answer

    async def bring_up_to_date(self, replica: Replica) -> None:
        """Make the changes in a replica that was started again. Raises a RequestError."""
        async with self._one_at_a_time:
            if not self._paths:
                return
            there = cast("AdapterList", await self._ask(replica, ListAdaptersRequest.parse({}))).adapters
            for name, path in self._paths.items():
                if path is not None and name not in there:
                    await self._ask(replica, LoadAdapterRequest.parse({"name": name, "path": path}))
                elif path is None and name in there:
                    await self._ask(replica, UnloadAdapterRequest.parse({"name": name}))

    async def _load(self, change: LoadAdapterRequest, replicas: Sequence[Replica]) -> Answer:
        done: list[Replica] = []
        try:
            for replica in replicas:
                answer = await self._ask(replica, change)
                done.append(replica)
        except RequestError:
            for replica in done:
                await self._undo(replica, change.name)
            raise
        return answer

    async def _unload(self, change: UnloadAdapterRequest, replicas: Sequence[Replica]) -> Answer:
        """One that has it no more is no error, if another had it: it was started again meanwhile."""
        answers = await asyncio.gather(*(self._ask(replica, change) for replica in replicas), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, Answer):
                return answer
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        raise next((error for error in failed if isinstance(error, ModelNotFound)), failed[0])

    async def _undo(self, replica: Replica, name: str) -> None:
        try:
            await self._ask(replica, UnloadAdapterRequest.parse({"name": name}))
        except RequestError as error:
            log.warning("adapter %s stays in the replica at %s: %s", name, replica.address, error.message)
