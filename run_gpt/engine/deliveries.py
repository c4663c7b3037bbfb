"""Requests that have not ended: their events and ends, on the way to the event loops that get them."""

import asyncio
import threading
from collections import abc

from msgspec.structs import replace

from run_gpt.engine.beam_search import BeamSearches
from run_gpt.engine.inbox import Delivery, Inbox
from run_gpt.engine.interface import Outlet
from run_gpt.engine.outcomes import fault
from run_gpt.engine.plan import Outcome, Sequence
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.scheduler import Scheduler
from run_gpt.errors import DeadlineExceeded, InvalidRequest, RequestError


class Deliveries:
    """Deliveries of all requests that have not ended. A request that ends frees what it has in scheduler and beams."""

    def __init__(self, scheduler: Scheduler, beams: BeamSearches, changed: threading.Condition):
        """`changed`: the owner's lock, held for every call but `abandon` and `expire`; notified when a request ends."""
        self._scheduler = scheduler
        self._beams = beams
        self._changed = changed
        self._open: dict[str, Delivery] = {}
        self._inboxes: dict[asyncio.AbstractEventLoop, Inbox] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, delivery: Delivery) -> bool:
        """Return True if this delivery's request has not ended."""
        return self._open.get(delivery.request_id) is delivery

    def use(self, adapter: object) -> bool:
        """Return True while a request uses this LoRA adapter."""
        return any(delivery.adapter is adapter for delivery in self._open.values())

    def new(self, request: Request, outlet: Outlet, loop: asyncio.AbstractEventLoop) -> Delivery:
        """Make the delivery of a request that is not open yet. Raises InvalidRequest for an id that is in use."""
        if request.id in self._open:
            raise InvalidRequest(f"id = {request.id!r}: a request with this id is running", param="id")
        return Delivery(request, outlet, self._inbox(loop))

    def open(self, delivery: Delivery) -> None:
        """Add a delivery."""
        self._open[delivery.request_id] = delivery

    def deliver(self, outcomes: abc.Sequence[tuple[Sequence, Outcome]]) -> None:
        """Deliver the outcomes of a step, except those of aborted requests."""
        for sequence, outcome in outcomes:
            if (delivery := self._open.get(sequence.request.id)) is None:
                continue
            try:
                if isinstance(outcome, TokenEvent) and outcome.finish_reason is not None:
                    outcome = replace(outcome, timing=sequence.timing, token_ids=sequence.kept_ids)
                self.put(delivery, outcome)
            except Exception as error:  # the others' events must still arrive
                if delivery in self:
                    self.put(delivery, fault(error))
        self.flush()

    def put(self, delivery: Delivery, outcome: Outcome) -> None:
        """Queue an event or an error, and end the request if it is the last one. The caller flushes later."""
        if isinstance(outcome, RequestError):
            self._close(delivery)
            self._scheduler.abort(delivery.request_id)
            delivery.inbox.end(delivery, outcome)
            return
        delivery.inbox.put(delivery, outcome)
        if outcome.finish_reason is not None:
            delivery.unfinished -= 1
            if delivery.unfinished == 0:
                self._close(delivery)
                delivery.inbox.end(delivery, None)

    def flush(self) -> None:
        """Wake each event loop that has something to deliver."""
        for inbox in list(self._inboxes.values()):
            if not inbox.flush():
                self._leave(inbox)

    def end_all(self, error: RequestError) -> None:
        """End all requests with this error."""
        for delivery in list(self._open.values()):
            self.put(delivery, error)
        self.flush()

    def abort(self, request_id: str) -> None:
        """End a request without a further call of its outlet, not even for queued events or the end."""
        if (delivery := self._open.get(request_id)) is not None:
            self.abandon(delivery)
            return
        for inbox in self._inboxes.values():
            inbox.cut(request_id)

    def abandon(self, delivery: Delivery) -> None:
        """Free the resources of a request, if it has not ended, without a call of its outlet."""
        with self._changed:
            delivery.inbox.drop(delivery)
            if delivery in self:
                self._close(delivery)
                self._scheduler.abort(delivery.request_id)

    def expire(self, delivery: Delivery) -> None:
        """End a request with DeadlineExceeded, if it has not ended."""
        with self._changed:
            if delivery in self:
                self.put(delivery, DeadlineExceeded("the request's time was up before its answer was complete"))
                self.flush()

    def _close(self, delivery: Delivery) -> None:
        """Note that a request has ended."""
        del self._open[delivery.request_id]
        self._beams.stop(delivery.request_id)
        self._changed.notify_all()

    def _inbox(self, loop: asyncio.AbstractEventLoop) -> Inbox:
        if loop not in self._inboxes:
            for inbox in [inbox for other, inbox in self._inboxes.items() if other.is_closed()]:
                self._leave(inbox)
            self._inboxes[loop] = Inbox(loop, self.abandon)
        return self._inboxes[loop]

    def _leave(self, inbox: Inbox) -> None:
        """Abort the requests of a closed event loop, because their outlets cannot be called any more."""
        del self._inboxes[inbox.loop]
        for delivery in list(self._open.values()):
            if delivery.inbox is inbox:
                self.abandon(delivery)
