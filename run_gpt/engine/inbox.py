"""Delivery of events from the engine's thread to event loops: each loop has an inbox and is woken once a step."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from run_gpt.engine.events import News
from run_gpt.engine.interface import Outlet
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.errors import InternalError, RequestError

log = logging.getLogger(__name__)


class Delivery:
    """One request on its way to its outlet."""

    def __init__(self, request: Request, outlet: Outlet, inbox: "Inbox"):
        self.request_id = request.id
        self.adapter: Any = None
        """LoRA adapter that the request uses (see lora.Lora), if it has one."""
        self.whole = request.whole
        self.outlet = outlet
        self.inbox = inbox
        self.unfinished = request.sequences
        """Sequences that have not ended."""
        self.news = News()
        """News not yet delivered to the outlet; guarded by the inbox's lock."""
        self.cut = False
        """True when nothing more is delivered: the outlet has got the end, or the request was aborted."""
        self.timer: asyncio.TimerHandle | None = None
        """Timer that ends the request at its deadline."""


class Inbox:
    """Queue of news of all requests of one event loop, from the engine's thread to their outlets.

    Waking a loop means a write to its socket. One write for each sequence of a large batch would take longer than the
    rest of a step's end, so `flush` wakes the loop once for all of them. News that arrive while it is busy are merged.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, abandon: Callable[[Delivery], None]):
        """`abandon` aborts the request of an outlet that failed; called on the loop."""
        self.loop = loop
        self._abandon = abandon
        self._lock = threading.Lock()
        self._waiting: dict[Delivery, None] = {}  # in the order in which they came
        self._delivering: list[tuple[Delivery, News]] = []
        self._woken = False

    def put(self, delivery: Delivery, event: TokenEvent) -> None:
        """Queue an event. Its outlet gets it after the next `flush`, or with the end if the request is `whole`."""
        with self._lock:
            delivery.news.add(event)
            if not delivery.whole:
                self._waiting[delivery] = None

    def end(self, delivery: Delivery, error: RequestError | None) -> None:
        """Queue the end of a request."""
        with self._lock:
            delivery.news.end(error)
            self._waiting[delivery] = None

    def flush(self) -> bool:
        """Wake the loop to deliver what is queued, if anything is. Returns False if the loop is closed."""
        with self._lock:
            if self._woken or not self._waiting:
                return True
            self._woken = True
        return self._call(self._deliver)

    def cut(self, request_id: str) -> None:
        """Deliver nothing more of a request that has ended, but whose outlet may not have got the end yet."""
        with self._lock:
            current = [delivery for delivery, _ in self._delivering]
            for delivery in (*current, *self._waiting):
                if delivery.request_id == request_id:
                    self.drop(delivery)

    def drop(self, delivery: Delivery) -> None:
        """Deliver nothing more of a request, and cancel its deadline."""
        delivery.cut = True
        if delivery.timer is not None:
            self._call(delivery.timer.cancel)

    def _call(self, callback: Callable[[], None]) -> bool:
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # it is closed
            return False
        return True

    def _deliver(self) -> None:
        """Deliver everything that waits to its outlets; runs on the loop."""
        with self._lock:
            self._woken = False
            self._delivering = [(delivery, delivery.news) for delivery in self._waiting]
            for delivery in self._waiting:
                delivery.news = News()
            self._waiting = {}
        for delivery, news in self._delivering:
            self._deliver_one(delivery, news)
        self._delivering = []

    def _deliver_one(self, delivery: Delivery, news: News) -> None:
        try:
            for event in news.events():
                if delivery.cut:
                    return
                delivery.outlet.receive(event)
        except Exception as error:
            log.exception("request %s ends, because the receiver of its answer failed", delivery.request_id)
            self._abandon(delivery)
            self._end(delivery, InternalError(f"the answer was not taken: {type(error).__name__}: {error}"))
            return
        if news.ended and not delivery.cut:
            self._end(delivery, news.error)

    @staticmethod
    def _end(delivery: Delivery, error: RequestError | None) -> None:
        delivery.cut = True
        if delivery.timer is not None:
            delivery.timer.cancel()
        try:
            delivery.outlet.ended(error)
        except Exception:  # the request is over, and the other requests must still get their news
            log.exception("the receiver of request %s failed at its end", delivery.request_id)
