"""`Models`: the choice of the model for a request, and the models that are in memory.

A model that is not in memory is loaded at the first request for it. If that needs memory of other models, the idle ones
are unloaded, the least recently used first; if all are in use, one of them takes no new requests until its running ones
have ended. So each gets its turn, and no running request is disturbed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from run_gpt.api.models import ModelState
from run_gpt.api.request import AnyRequest
from run_gpt.api.translated import TranslatedRequest
from run_gpt.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, RequestError, Unavailable
from run_gpt.gateway.hosted import Hosted
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.gateway.replica import Replica

IDLE_SECONDS = 0.5
"""Time between two checks for models that have been idle for too long."""
PROGRESS_SECONDS = 0.1
"""Time between two reports of a load's progress."""
LOOK_SECONDS = 1.0
"""Time between two checks for free memory: a replica that died frees its memory without notice."""


class Models:
    """The models behind one gateway, each with a pool of its own, the default one first.

    `memory_budget`: bytes that all of them may take together; None: no limit. Use it on one event loop.
    """

    def __init__(self, pools: Sequence[ReplicaPool], memory_budget: int | None = None):
        self.all = [Hosted(pool) for pool in pools]
        self._budget = memory_budget
        self._one_at_a_time = asyncio.Lock()
        self._released = asyncio.Event()
        """Event that is set when a request, a load or an unload has ended: memory may be free now."""
        self._idle_watch: asyncio.Task[None] | None = None
        self._stopped: str | None = None

    async def start(self) -> None:
        """Start watching the replicas. Each one at a fixed address has been probed once when this returns."""
        await asyncio.gather(*(hosted.pool.start() for hosted in self.all))
        self._idle_watch = asyncio.create_task(self._unload_idle())

    async def close(self) -> None:
        """End the watchers and the connections."""
        self._stopped = self._stopped or "the server stops"
        tasks = [task for task in (self._idle_watch, *(hosted.loading for hosted in self.all)) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(hosted.pool.close() for hosted in self.all))

    def stop(self, why: str) -> None:
        """End every running call and load, and refuse new ones, with Unavailable(why)."""
        self._stopped = why
        for hosted in self.all:
            hosted.pool.stop(why)
            if hosted.loading is not None:
                hosted.loading.cancel()

    @property
    def watched(self) -> bool:
        """True when the known states of the replicas are up to date, and idle models are unloaded."""
        watch = self._idle_watch
        return (watch is None or not watch.done()) and all(hosted.pool.watched for hosted in self.all)

    @property
    def replicas(self) -> list[Replica]:
        """Replicas of all models."""
        return [replica for hosted in self.all for replica in hosted.pool.replicas]

    @property
    def ready(self) -> bool:
        """True when each model has been seen once, and at least one of them would take a request now."""
        known = all(hosted.name for hosted in self.all)
        return known and any(hosted.pool.sure or hosted.can_load for hosted in self.all)

    def named(self, name: str | None) -> Hosted:
        """Return the model of this name, the default one for None. Raises ModelNotFound, Unavailable."""
        if name is None:
            return self.all[0]
        for hosted in self.all:
            if name in hosted.names:
                return hosted
        if unknown := next((hosted for hosted in self.all if not hosted.name), None):
            unknown.pool.check_ready()
        known = [known for hosted in self.all for known in hosted.names] + list(self.adapters)
        names = ", ".join(map(repr, known))
        raise ModelNotFound(f"model {name!r} is not served here: this server has {names}", param="model")

    @property
    def adapters(self) -> dict[str, Hosted]:
        """Adapters that requests may name as their model. A model's name, and the first model's adapter, come first."""
        taken = {name for hosted in self.all for name in hosted.names}
        found: dict[str, Hosted] = {}
        for hosted in self.all:
            for name in hosted.adapters:
                if name not in taken:
                    found.setdefault(name, hosted)
        return found

    def shown(self, name: str) -> Hosted:
        """Return the model of this name, or that of the adapter of this name. Raises the errors of `named`."""
        return self.adapters.get(name) or self.named(name)

    def resolved(self, request: AnyRequest) -> AnyRequest:
        """Return the request; one whose model is an adapter's name as a request to its model, with the adapter.

        Raises InvalidRequest if it names another adapter, too.
        """
        name = request.model
        if name is None or any(name in hosted.names for hosted in self.all):
            return request
        hosted = self.adapters.get(name)
        return request if hosted is None else _with_adapter(request, name, hosted.name)

    def check(self, name: str | None) -> None:
        """Raise ModelNotFound, or Unavailable for a model that is not in memory and cannot be loaded now."""
        hosted = self.named(name)
        if not (hosted.pool.ready or hosted.loading or hosted.can_load):
            hosted.pool.check_ready()

    @asynccontextmanager
    async def held(self, hosted: Hosted, seconds: float) -> AsyncIterator[ReplicaPool]:
        """Yield the pool of a model, loaded first if necessary, and keep the model in memory until this is left.

        Raises DeadlineExceeded if that takes longer than `seconds`, Unavailable if it fails.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._bring(hosted)
        except TimeoutError:
            raise DeadlineExceeded(f"the model {hosted.name} was not in memory after {seconds:g} s") from None
        hosted.in_use += 1  # nothing else ran since it was seen to be in memory
        try:
            yield hosted.pool
        finally:
            hosted.in_use -= 1
            hosted.last_used = time.monotonic()
            self._released.set()

    async def load(self, hosted: Hosted, seconds: float) -> AsyncIterator[ModelState]:
        """Load a model; yield its states until it is loaded, the last one included. Raises the errors of `held`."""
        loading = asyncio.ensure_future(self._held_for_a_moment(hosted, seconds))
        reported: object = None
        try:
            await asyncio.wait((loading,), timeout=PROGRESS_SECONDS / 10)  # it begins, or ends at once
            while not loading.done():
                state = hosted.describe()
                if (progress := (state.step, state.done, state.total)) != reported and state.state == "loading":
                    yield state
                    reported = progress
                await asyncio.wait((loading,), timeout=PROGRESS_SECONDS)
            yield await loading
        finally:
            loading.cancel()

    async def unload(self, hosted: Hosted, seconds: float) -> ModelState:
        """Unload a model that no request uses. Raises Unavailable, DeadlineExceeded."""
        try:
            async with asyncio.timeout(seconds), self._one_at_a_time:
                if busy := hosted.in_use + hosted.waiting:
                    raise Unavailable(f"the model {hosted.name} is in use, by {busy} requests: try again when they end")
                if hosted.loading is not None or hosted.state == "loading":
                    raise Unavailable(f"the model {hosted.name} is being loaded: try again when it is")
                await self._unload(hosted)
        except TimeoutError:
            raise DeadlineExceeded(f"the model {hosted.name} was not unloaded after {seconds:g} s") from None
        if hosted.pool.ready:
            raise Unavailable(f"the model {hosted.name} is still in memory: a replica did not unload it")
        return hosted.describe()

    async def _held_for_a_moment(self, hosted: Hosted, seconds: float) -> ModelState:
        """Return its state at a moment when nothing can unload it."""
        async with self.held(hosted, seconds):
            return hosted.describe()

    async def _bring(self, hosted: Hosted) -> None:
        """Return when the model is in memory and takes requests; that still holds when the caller goes on."""
        hosted.waiting += 1
        try:
            while hosted.leaving is not None or not hosted.pool.ready:
                if hosted.leaving is not None:
                    await hosted.leaving.wait()
                    continue
                if self._stopped:
                    raise Unavailable(self._stopped)
                if hosted.loading is None:
                    if not hosted.can_load:
                        hosted.pool.check_ready()
                    hosted.loading = asyncio.create_task(self._load(hosted))
                    hosted.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
                loading = hosted.loading
                await asyncio.wait((loading,))
                if not loading.cancelled():  # only the end of the server cancels it
                    loading.result()
        finally:
            hosted.waiting -= 1
            self._released.set()

    async def _load(self, hosted: Hosted) -> None:
        try:
            async with self._one_at_a_time:
                await self._make_room(hosted)
                hosted.claims_memory = True
            await hosted.load()
        finally:
            hosted.claims_memory, hosted.loading = False, None
            self._released.set()

    async def _make_room(self, hosted: Hosted) -> None:
        """Return when the model fits the budget beside those in memory. Raises Unavailable if it never does."""
        needed = hosted.memory
        if self._budget is None or needed is None:
            return
        if needed > self._budget:
            gigabytes = f"{needed / 1e9:.2f} GB, and all models together may take {self._budget / 1e9:.2f} GB"
            raise Unavailable(f"the model {hosted.name} takes {gigabytes}: raise --memory-budget")
        others = [other for other in self.all if other is not hosted]
        try:
            while sum(other.memory_taken for other in others) + needed > self._budget:
                if not hosted.waiting:
                    raise Unavailable(f"nobody waits for the model {hosted.name} any more")
                await self._take_memory_of(others)
        finally:
            for other in others:
                other.stay()

    async def _take_memory_of(self, others: Sequence[Hosted]) -> None:
        """Unload the least recently used idle model. If none is idle, stop new requests to one. Wait for a change."""
        self._released.clear()
        loaded = sorted((other for other in others if other.pool.ready), key=lambda other: other.last_used)
        idle = next((other for other in loaded if other.may_go), None)
        busy = next((other for other in loaded if other.in_use), None)
        if idle is not None:
            await self._unload(idle)
            if not idle.pool.ready:
                return
            self._released.clear()  # it was not unloaded: that alone is no reason to retry at once
        elif busy is not None and not any(other.leaving for other in loaded):
            busy.leaving = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._released.wait()

    async def _unload(self, hosted: Hosted) -> None:
        """Unload a model that no request uses; requests for it wait meanwhile."""
        hosted.leaving = hosted.leaving or asyncio.Event()
        try:
            await hosted.unload()
        finally:
            hosted.stay()
            self._released.set()

    async def _unload_idle(self) -> None:
        """Unload models that have been idle for too long, for ever."""
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            for hosted in self.all:
                if not hosted.pool.ready:
                    hosted.last_used = time.monotonic()
                elif hosted.expired:
                    async with self._one_at_a_time:
                        if hosted.expired:
                            await self._unload(hosted)


def _with_adapter(request: AnyRequest, name: str, model: str) -> AnyRequest:
    """Return a request to a model, and to an adapter if it is one for a text or vectors."""
    changes = {"model": model}
    if "adapter" in type(request).model_fields:
        if (given := getattr(request, "adapter", None)) not in (None, name):
            raise InvalidRequest(f"adapter = {given!r}: model = {name!r} is an adapter as well", param="adapter")
        changes["adapter"] = name
    named = request.model_copy(update=changes)
    if isinstance(request, TranslatedRequest):
        with suppress(RequestError):  # raised again where it gets the names of this API
            natives = [_with_adapter(native, name, model) for native in request.natives()]
            named.__dict__["made_natives"] = natives  # to make them anew would take long
    return named
