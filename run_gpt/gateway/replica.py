"""One executor as the gateway sees it: the link to it, and its known state."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Literal, cast

from pydantic import ValidationError

from run_gpt.api.answers import Status
from run_gpt.errors import DeadlineExceeded, InternalError, RequestError
from run_gpt.gateway.line import Line
from run_gpt.link.calling import ConnectionFailed, Exchange, OtherVersion

log = logging.getLogger(__name__)

State = Literal[
    "connecting", "unloaded", "loading", "ready", "silent", "stuck", "draining", "dead", "lost", "incompatible"
]
PREPARED: tuple[State, ...] = ("ready", "silent", "stuck")
"""States in which a replica may get requests; one that is not `ready` gets them only where none is."""

PROBE_SECONDS = 0.5
CONNECTING_SECONDS = 0.1
"""Time between two probes of a replica that has not been seen yet: a server that starts is ready that much earlier."""
PROBE_TIMEOUT = 2.0
LATE_PROBES = 4
"""Number of late probes in a row after which a replica with an open port is lost; a busy one is silent for a while."""
LOAD_SECONDS = 3600.0
"""Longest time that a replica may take to load its model."""
UNLOAD_SECONDS = 60.0
"""Longest time that it may take to free its memory."""


class Replica:
    """One executor at `address` ("host:port").

    States: connecting (not seen yet), unloaded and loading (it has no model in memory), ready, stuck, draining and dead
    (as it reports), silent (was ready, and the latest probe was not answered in time), lost (was seen, does not
    answer), incompatible (its inner wire has another version than this gateway's). A leaving replica has one of them,
    too.
    """

    def __init__(self, address: str, prepare: "Callable[[Replica], Awaitable[None]] | None" = None):
        """Make the link. `prepare` is awaited each time that it becomes ready, before it counts as ready."""
        self.address = address
        self._prepare = prepare
        self.state: State = "connecting"
        self.status: Status | None = None
        self.in_flight = 0
        """Number of this gateway's requests that it runs now."""
        self.cache = object()
        """Object that stands for its cached prompts; replaced each time it becomes ready, as it may have lost them."""
        self.restarts = 0
        """Number of times that another process was found at its address."""
        self.leaving = False
        """True when its address is no longer listed: it finishes its requests and gets no new ones."""
        self._line = Line(address)
        self._late = 0
        """Number of its latest probes that were not answered in time; a time would count pauses of this process."""
        self._heard_at = 0.0
        """Time at which its newest status arrived."""
        self._ready_word: Status | None = None
        """The first status since its last absence that says `ready`."""
        self._preparing = asyncio.Lock()
        self._doubt = asyncio.Event()

    async def start(
        self, path: str, body: bytes = b"", *, request_id: str, arrived: asyncio.Event | None = None
    ) -> Exchange:
        """Send a request (see Link.start). Raises ConnectionFailed, OtherVersion."""
        return await self._line.start(path, body, request_id, arrived)

    async def ask(self, path: str, body: bytes = b"", *, timeout: float) -> bytes:
        """Return the JSON of a whole answer. Raises a RequestError, DeadlineExceeded after `timeout` seconds."""
        async with aclosing(cast("Any", self._bodies(path, body, timeout))) as bodies:
            async for answer in bodies:
                return cast("bytes", answer)
        raise InternalError(f"the replica gave no answer to {path}")

    async def _bodies(self, path: str, body: bytes, timeout: float) -> AsyncIterator[bytes]:
        """Yield the bodies that answer a request. Raises a RequestError."""
        arrived, deadline = asyncio.Event(), time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                exchange = await self.start(path, body, request_id=f"rungpt-{path}", arrived=arrived)
        except TimeoutError:
            raise DeadlineExceeded(f"no connection after {timeout:g} s") from None
        exchange.limit(deadline - time.monotonic())
        try:
            while True:
                arrived.clear()
                for update in exchange.take():
                    yield cast("bytes", update)
                if exchange.over:
                    break
                await arrived.wait()
            if exchange.error is not None:
                raise exchange.error
        finally:
            exchange.close()

    @property
    def takes_requests(self) -> bool:
        """True when it may get new requests."""
        return self.state in PREPARED and not self.leaving

    @property
    def answers(self) -> bool:
        """True when it answers probes, in any state."""
        return self.state not in ("connecting", "lost")

    @property
    def loads(self) -> bool:
        """True when it can load its model, or does."""
        return self.state in ("unloaded", "loading") and not self.leaving

    def suspect(self) -> None:
        """Note that a call found no connection: it gets no request until it answers a probe."""
        self._leave("lost")
        self._doubt.set()

    def _leave(self, state: State) -> None:
        """Take a state in which it gets no requests; it is prepared again before it is ready."""
        self.state, self._ready_word = state, None

    def is_named(self, named: bool) -> None:
        """Take in `named`: True when its address is one of the pool's."""
        if named and self.leaving:
            self._leave("connecting")  # it has missed the changes made meanwhile
            self._doubt.set()
        self.leaving = not named

    async def watch(self, first: float, pause: Callable[[], float]) -> None:
        """Probe for ever: after `first` seconds, then after each `pause()`, and at once when a call failed."""
        await asyncio.sleep(first)
        while True:
            self._doubt.clear()
            await self.probe()
            try:
                async with asyncio.timeout(pause()):
                    await self._doubt.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(0.05)  # it has only just failed: no storm of probes

    async def probe(self) -> None:
        """Ask for `/status` once and keep the answer."""
        sent = time.monotonic()
        try:
            status = await self._ask_status()
        except ConnectionFailed:
            self._unheard(sent, gone=True)
        except OtherVersion as error:
            self._note_other_version(error)
        except DeadlineExceeded:
            self._unheard(sent, gone=False)
        except (RequestError, ValidationError):  # another program, or an executor of another kind, listens there
            self._unheard(sent, gone=True)
        else:
            await self._heard(status)

    async def load(self) -> None:
        """Have it load its model, and take in its progress until the end. Raises a RequestError."""
        async with aclosing(cast("Any", self._bodies("/load", b"", LOAD_SECONDS))) as states:
            async for state in states:
                await self._heard(Status.model_validate_json(state))

    async def unload(self) -> None:
        """Have it free its model's memory. Raises a RequestError: Unavailable if it is busy."""
        await self._heard(Status.model_validate_json(await self.ask("/unload", timeout=UNLOAD_SECONDS)))

    @property
    def model(self) -> str | None:
        """Name of its model, once it has reported it."""
        return self.status.model if self.status else None

    async def state_now(self) -> State:
        """Ask for its state now, after it has refused a request; `lost` without an answer."""
        try:
            status = await self._ask_status()
        except (RequestError, ValidationError):
            self.suspect()
            return "lost"
        await self._heard(status)
        return status.state

    async def _heard(self, status: Status) -> None:
        """Take in its status, unless a newer one has arrived: answers on the wire may overtake each other."""
        self._heard_at, self._late = time.monotonic(), 0
        if self._is_newer(status):
            if self.status is not None and self.status.started != status.started:
                self.restarts += 1
                self._leave("connecting")
            self.status = status
            if status.state == "stuck":
                self._doubt_of("stuck")
            elif status.state != "ready":
                self._leave(status.state)
            self._ready_word = self._ready_word or (status if status.state == "ready" else None)
        if status.state == "ready":
            await self._become_ready()

    async def _become_ready(self) -> None:
        """Prepare it, if it says that it is ready and is not yet. An absence meanwhile makes that void."""
        async with self._preparing:
            word = self._ready_word
            if self.state in PREPARED and self.status is not None and self.status.state == "ready":
                self.state = "ready"
            elif word is None or self.state in PREPARED:
                return
            elif await self._prepared() and word is self._ready_word:
                self.cache = object()
                self.state = "ready"

    def _is_newer(self, status: Status) -> bool:
        """Return True for the first status of a process, and for one with a higher number than all before it."""
        known = self.status
        if known is None or known.started != status.started or known.number is None or status.number is None:
            return True
        return status.number > known.number

    async def ask_metrics(self, timeout: float) -> str:
        """Return its metrics in Prometheus' text form. Raises a RequestError."""
        return (await self.ask("/metrics", timeout=timeout)).decode()

    async def _ask_status(self) -> Status:
        return Status.model_validate_json(await self.ask("/status", timeout=PROBE_TIMEOUT))

    async def _prepared(self) -> bool:
        try:
            if self._prepare is not None:
                await self._prepare(self)
        except RequestError as error:
            log.warning("the replica at %s is not what the others are: %s", self.address, error.message)
            return False
        return True

    def _unheard(self, sent: float, *, gone: bool) -> None:
        if sent < self._heard_at:
            return  # another question was answered since
        self._late += 1
        if gone:
            self._lose()
            self._line.renew_certificate()  # the old one may have expired
        elif self._late >= LATE_PROBES and self.state not in ("connecting", "loading", "lost"):
            self._lose()
            self._line.renew()
        else:
            self._doubt_of("silent")

    def _doubt_of(self, state: State) -> None:
        """Take a state from which it may come back as it was."""
        if self.state in PREPARED:
            self.state = state

    def _lose(self) -> None:
        if self.state != "connecting":
            self._leave("lost")

    def _note_other_version(self, error: OtherVersion) -> None:
        if self.state != "incompatible":
            log.error("the replica at %s gets no requests: %s", self.address, error.message)
        self._leave("incompatible")

    def describe(self) -> dict[str, Any]:
        """Return this replica's entry in `/ready`."""
        known = self.status if self.answers else None
        return {
            "address": self.address,
            "model": self.model,
            "state": "leaving" if self.leaving else self.state,
            "in_flight": self.in_flight,
            "running": known.running if known else None,
            "waiting": known.waiting if known else None,
        }

    async def close(self) -> None:
        """End the link and all requests on it."""
        await self._line.close()
