"""`Hosted`: one model of a gateway: the pool of its replicas, its requests, and its state in memory."""

import asyncio
import logging
import time
import uuid
from typing import Any

from run_gpt.api.models import ModelState, State
from run_gpt.api.openai.models import Model
from run_gpt.errors import RequestError, Unavailable
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.gateway.replica import Replica

log = logging.getLogger(__name__)

_TAKES_MEMORY = ("ready", "silent", "stuck", "draining", "loading")


class Hosted:
    """The model that the executors of `pool` serve."""

    def __init__(self, pool: ReplicaPool):
        self.pool = pool
        self.in_use = 0
        """Number of requests that it answers."""
        self.waiting = 0
        """Number of requests that wait until it is in memory."""
        self.last_used = time.monotonic()
        """Time at which the last request for it ended; the current time while it is not in memory."""
        self.loading: asyncio.Task[None] | None = None
        """Task that loads it, from the wait for memory to the end."""
        self.claims_memory = False
        """True when memory was freed for it that it does not take yet."""
        self.leaving: asyncio.Event | None = None
        """Event that is set once it is unloaded: it takes no new requests until then."""
        self.loads, self.failed_loads, self.unloads = 0, 0, 0
        self._since = int(time.time())

    @property
    def name(self) -> str:
        """Name of the model; empty until a replica has reported it."""
        return self.pool.model or ""

    @property
    def names(self) -> list[str]:
        """All names of the model, the shown one first; empty until a replica has reported it."""
        return [self.name, *(self._said("aliases") or ())] if self.name else []

    @property
    def adapters(self) -> list[str]:
        """Names of its LoRA adapters."""
        return self.pool.adapters.applied(self._said("adapters") or ())

    @property
    def can_load(self) -> bool:
        """True when a replica could load it, or does."""
        return any(replica.loads for replica in self.pool.replicas)

    @property
    def state(self) -> State:
        """State that `/v1/models` reports."""
        if self.pool.ready:
            return "loaded"
        if self.loading is not None or any(replica.state == "loading" for replica in self.pool.replicas):
            return "loading"
        if self.can_load:
            return "failed" if self._said("why") else "unloaded"
        return "unavailable"

    @property
    def memory(self) -> int | None:
        """Bytes that it takes at most in all replicas together, once loaded; None: unknown."""
        each = [replica.status.memory for replica in self.pool.replicas if replica.status]
        return int(sum(each)) if each and None not in each else None  # type: ignore[arg-type]

    @property
    def memory_taken(self) -> int:
        """Bytes of `memory` that may be taken now."""
        taken = any(replica.state in _TAKES_MEMORY for replica in self.pool.replicas)
        return (self.memory or 0) if taken or self.claims_memory else 0

    @property
    def expired(self) -> bool:
        """True when the model has been idle for at least `unload_after` seconds."""
        seconds: float | None = self._said("unload_after")
        idle = self.may_go and bool(self.pool.ready)
        return seconds is not None and idle and time.monotonic() - self.last_used >= seconds

    @property
    def may_go(self) -> bool:
        """True when no request uses or loads it. Requests that wait for the end of its unloading do not count."""
        return not self.in_use and self.loading is None and (self.leaving is not None or not self.waiting)

    def stay(self) -> None:
        """Take requests again, or note that it is unloaded: requests that waited for that go on."""
        if self.leaving is not None:
            self.leaving.set()
            self.leaving = None

    def card(self, name: str) -> Model:
        """Return its entry in `/v1/models` under one of its names, or the entry of one of its adapters."""
        return Model(
            id=name,
            created=self._since,
            root=self.name,
            parent=None if name in self.names else self.name,
            max_model_len=self.pool.context_length,
            precision=self._said("precision"),
            sampling_defaults=self._said("sampling"),
            state=self.state,
            memory=self.memory,
        )

    def describe(self) -> ModelState:
        """Return its current state."""
        state = self.state
        busy = [r.status for r in self.pool.replicas if r.status and r.state == "loading"] if state == "loading" else []
        return ModelState(
            id=f"model-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.name,
            state=state,
            step=busy[0].step if busy else "Waiting for memory" if self.loading and not self.claims_memory else None,
            done=busy[0].done if busy else None,
            total=busy[0].total if busy else None,
            memory=self.memory,
        )

    async def load(self) -> None:
        """Load it in every replica that has not loaded it. Raises Unavailable, with the reason, if none has it then."""
        replicas = [replica for replica in self.pool.replicas if replica.loads]
        failures = await asyncio.gather(*map(_load, replicas))
        if not self.pool.ready:
            self.failed_loads += 1
            why = self._said("why") or next(filter(None, failures), "no replica answers")
            raise Unavailable(f"the model {self.name} cannot be loaded: {why}")
        self.loads += 1

    async def unload(self) -> None:
        """Unload it in every replica. A failure is logged, and shows in the replica's state."""
        loaded = [replica for replica in self.pool.replicas if replica.state == "ready"]
        await asyncio.gather(*map(_unload, loaded))
        self.unloads += bool(loaded) and not self.pool.ready

    def _said(self, name: str) -> Any:
        """Return the first value that a replica's status has for this field."""
        values = (getattr(replica.status, name) for replica in self.pool.replicas if replica.status)
        return next((value for value in values if value is not None), None)


async def _load(replica: Replica) -> str | None:
    """Load the model in a replica. Return the reason if the load failed without a status."""
    try:
        await replica.load()
    except (RequestError, ValueError) as error:
        replica.suspect()
        log.warning("the replica at %s failed while it loaded its model: %s", replica.address, type(error).__name__)
        return "its process ended meanwhile; it may need more memory than there is"
    return None


async def _unload(replica: Replica) -> None:
    try:
        await replica.unload()
    except (RequestError, ValueError) as error:
        log.warning("the replica at %s did not unload its model: %s", replica.address, error)
