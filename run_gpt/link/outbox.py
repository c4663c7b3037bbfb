"""`Outbox`: messages that wait for their call, sent as one frame as soon as the previous frame is written."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from run_gpt.link.frames import encode

Take = Callable[[], Sequence[Any]]


class Outbox:
    """Sender of the messages that `take` returns. Callers with something to send call `notify`, any number of times.

    A call takes one frame at a time; messages that come while one is being sent go with the next one. None among the
    messages ends a frame.
    """

    def __init__(self, take: Take):
        self._take = take
        self._waiting = asyncio.Event()
        self._over = False

    def notify(self) -> None:
        """Send soon; other messages from this turn of the event loop go along."""
        self._waiting.set()

    async def send_all(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send until `end` is called. Raises what `write` raises."""
        over = False
        while not over:
            await self._waiting.wait()
            self._waiting.clear()
            over = self._over
            if messages := self._take():
                for frame in _frames(messages):
                    await write(encode(frame))

    def end(self) -> None:
        """Let `send_all` return once all current messages are sent.

        Do not cancel it instead: a call whose write was cancelled takes no other write.
        """
        self._over = True
        self._waiting.set()


def _frames(messages: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the messages of each frame."""
    if None not in messages:
        yield messages
        return
    frame: list[Any] = []
    for message in messages:
        if message is not None:
            frame.append(message)
        elif frame:
            yield frame
            frame = []
    if frame:
        yield frame


async def end_tasks(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks, and wait until they have ended, with or without an error."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
