"""Running requests by id, and the inboxes of the event loops that get their news."""

import asyncio
from collections.abc import Callable, Iterator

from run_gpt.engine.inbox import Delivery, Inbox
from run_gpt.engine.interface import Outlet
from run_gpt.engine.request import Request
from run_gpt.errors import InvalidRequest


class Deliveries:
    """Deliveries of all requests that have not ended. Its owner holds one lock for every call."""

    def __init__(self, abandon: Callable[[Delivery], None]):
        """`abandon` aborts the request of an outlet that failed or whose event loop is closed."""
        self._abandon = abandon
        self._open: dict[str, Delivery] = {}
        self._inboxes: dict[asyncio.AbstractEventLoop, Inbox] = {}

    def __iter__(self) -> Iterator[Delivery]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def new(self, request: Request, outlet: Outlet, loop: asyncio.AbstractEventLoop) -> Delivery:
        """Make the delivery of a request that is not open yet. Raises InvalidRequest for an id that is in use."""
        if request.id in self._open:
            raise InvalidRequest(f"id = {request.id!r}: a request with this id is running", param="id")
        return Delivery(request, outlet, self._inbox(loop))

    def open(self, delivery: Delivery) -> None:
        """Add a delivery."""
        self._open[delivery.request_id] = delivery

    def close(self, delivery: Delivery) -> None:
        """Remove a delivery: its request has ended."""
        del self._open[delivery.request_id]

    def get(self, request_id: str) -> Delivery | None:
        """Return the delivery of a request that has not ended."""
        return self._open.get(request_id)

    def has(self, delivery: Delivery) -> bool:
        """Return True if this delivery's request has not ended."""
        return self._open.get(delivery.request_id) is delivery

    def cut(self, request_id: str) -> None:
        """Deliver nothing more of a request that has ended, but whose outlet may not have got the end yet."""
        for inbox in self._inboxes.values():
            inbox.cut(request_id)

    def flush(self) -> None:
        """Wake each event loop that has something to deliver."""
        for inbox in list(self._inboxes.values()):
            if not inbox.flush():
                self._leave(inbox)

    def _inbox(self, loop: asyncio.AbstractEventLoop) -> Inbox:
        if loop not in self._inboxes:
            for inbox in [inbox for other, inbox in self._inboxes.items() if other.is_closed()]:
                self._leave(inbox)
            self._inboxes[loop] = Inbox(loop, self._abandon)
        return self._inboxes[loop]

    def _leave(self, inbox: Inbox) -> None:
        """Abort the requests of a closed event loop, because their outlets cannot be called any more."""
        del self._inboxes[inbox.loop]
        for delivery in self:
            if delivery.inbox is inbox:
                self._abandon(delivery)
